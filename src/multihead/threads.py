"""How many threads the engine uses, and what it runs on."""

from __future__ import annotations

from typing import Any, Literal, overload

from multihead import _native
from multihead.checks import integer, wrong


def set_num_threads(n: int) -> None:
    """Set how many threads the engine uses, the calling one included.

    Results do not depend on it, bit for bit. At first it is what the environment variable
    ``MULTIHEAD_NUM_THREADS`` says (from 1 to 1024; anything else is an ImportError), or else the
    number of CPUs that the process may use, at most ``OMP_NUM_THREADS``: joblib and others tell
    their worker processes so what share of the machine is theirs. ``threadpoolctl`` reaches it too,
    see `register_threadpoolctl`. The smallest calls run in the calling thread alone.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If it is less than 1 or over 1024.

    Examples
    --------
    >>> import multihead as mh
    >>> before = mh.get_num_threads()
    >>> mh.set_num_threads(2)
    >>> mh.get_num_threads()
    2
    >>> mh.set_num_threads(before)
    """
    _native.set_num_threads(integer("n", n, 1, 1025))


def get_num_threads() -> int:
    """Return how many threads the engine uses.

    Examples
    --------
    >>> import multihead as mh
    >>> mh.get_num_threads() >= 1
    True
    """
    return _native.get_num_threads()


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show the version, the instruction set in use, those available, and the threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Print the configuration, or return it, as ``numpy.show_config`` does.

    Returns
    -------
    dict or None
        With `mode` "dicts": ``version`` and ``isa`` (str), ``available_isas`` (list of str),
        ``threads`` (int).

    Raises
    ------
    ValueError
        If `mode` is another one.

    Examples
    --------
    >>> import multihead as mh
    >>> sorted(mh.show_config("dicts"))
    ['available_isas', 'isa', 'threads', 'version']
    """
    if mode not in ("stdout", "dicts"):
        raise wrong("mode", '"stdout" or "dicts"', repr(mode))
    from multihead import __version__

    config: dict[str, Any] = {
        "version": __version__,
        "isa": _native.isa(),
        "available_isas": list(_native.available_isas()),
        "threads": _native.get_num_threads(),
    }
    if mode == "dicts":
        return config
    print(f"multihead {config['version']}")
    print(f"instruction set: {config['isa']} (available: {', '.join(config['available_isas'])})")
    print(f"threads: {config['threads']}")
    return None
