"""How a job of MPI ends when a rank fails: all of its processes do, and not with 0."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from mpi4py import MPI
from mpi4py.run import set_abort_status

_GRACE = 5.0  # seconds that a process has to end by itself
_lock = threading.Lock()
_under_way: list[Callable[[], bool]] = []


def watch(busy: Callable[[], bool]) -> None:
    """Let an error that nobody catches end the job, or something under way at the end.

    By itself a process that ends waits for the others, who may wait for it.
    """
    with _lock:
        _under_way.append(busy)
        if len(_under_way) > 1:
            return
    before = sys.excepthook

    def failed(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        before(kind, error, trace)
        give_up(error)
        _end_soon()

    sys.excepthook = failed
    atexit.register(_leave)


def give_up(error: BaseException | int) -> None:
    """Let this process end all others when it ends, as `python -m mpi4py` does."""
    set_abort_status(error)


def _leave() -> None:
    if any([busy() for busy in _under_way]):
        give_up(1)


def _end_soon() -> None:
    """End the job even if a thread, or a function for the exit, keeps this process."""

    def end() -> None:
        if not MPI.Is_finalized():
            MPI.COMM_WORLD.Abort(1)

    timer = threading.Timer(_GRACE, end)
    timer.daemon = True
    timer.start()
