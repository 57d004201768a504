"""Lets threadpoolctl limit the engine's threads, as it does those of BLAS and OpenMP."""

from __future__ import annotations

import sys
from functools import cache


@cache  # threadpoolctl would list a second registration too
def register_threadpoolctl() -> None:
    """Let ``threadpoolctl.threadpool_limits`` set how many threads the engine uses.

    Importing multihead does it where threadpoolctl is imported already; a program that imports it
    later calls this. The engine is its own kind of thread pool there, ``user_api="multihead"``.
    The limit holds for the process, for all of its threads.

    Raises
    ------
    ModuleNotFoundError
        If threadpoolctl is not installed, or is older than 3.2, which has no such registry.

    Examples
    --------
    >>> import multihead as mh
    >>> from threadpoolctl import threadpool_limits
    >>> mh.register_threadpoolctl()
    >>> with threadpool_limits(limits=1):
    ...     mh.get_num_threads()
    1
    """
    import threadpoolctl

    if not hasattr(threadpoolctl, "register"):
        raise ModuleNotFoundError(
            "threadpoolctl: expected version 3.2 or newer, which can register libraries, "
            f"got {threadpoolctl.__version__}"
        )
    from multihead.threadpool_controller import EngineController

    threadpoolctl.register(EngineController)


def register_if_loaded() -> None:
    """Register with a threadpoolctl that is imported, without importing one."""
    if hasattr(sys.modules.get("threadpoolctl"), "register"):
        register_threadpoolctl()
