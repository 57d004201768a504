"""Timing that is fair on a shared machine: blocks that take turns, medians, and a look around."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import fmean, median
from typing import Any

QUIET = 0.9  # the share of the processors that a measurement must have had
BLOCK = 0.02  # seconds of one contender's turn
FEWEST = 3  # rounds
_WORK = bytes(2_000_000)


def granted(threads: int) -> float:
    """Return the share of the processors that we get: each thread hashes, and tells its time.

    Examples
    --------
    >>> 0 < granted(1) <= 1
    True
    """
    time.sleep(0.005)  # lets the threads of others' runtimes fall asleep

    def share(_: int) -> float:
        wall, used = time.perf_counter(), time.thread_time()
        for _ in range(5):
            hashlib.sha256(_WORK).digest()  # without the GIL
        return (time.thread_time() - used) / (time.perf_counter() - wall)

    with ThreadPoolExecutor(threads) as pool:
        return min(1.0, fmean(pool.map(share, range(threads))))


def alternate(
    steps: Mapping[str, Callable[[], Any]],
    seconds: float,
    threads: int,
    tell: Callable[[float], None],
) -> tuple[dict[str, list[float]], float]:
    """Time steps block by block, each round in the opposite order of the last.

    Parameters
    ----------
    steps : mapping of str to callable
        Warmed up.
    seconds : float
        When to stop, after three rounds.
    threads : int
        How many each uses.
    tell : callable
        Is told, after each round, how much of the time is over.

    Returns
    -------
    times : dict of str to list of float
        Seconds a call, one number a round.
    share : float
        What share of the processors was ours, the mean over the rounds.

    Examples
    --------
    >>> times, share = alternate({"nap": lambda: time.sleep(0.01)}, 0.1, 1, lambda done: None)
    >>> len(times["nap"]) >= 3, min(times["nap"]) >= 0.01
    (True, True)
    """
    order = list(steps)
    times: dict[str, list[float]] = {name: [] for name in order}
    shares: list[float] = []
    start = time.perf_counter()
    with _no_collection():
        while len(shares) < FEWEST or time.perf_counter() - start < seconds:
            shares.append(granted(threads))
            for name in order:
                times[name].append(_block(steps[name]))
            order.reverse()
            tell(min(1.0, (time.perf_counter() - start) / seconds))
    return times, fmean(shares)


def _block(step: Callable[[], Any]) -> float:
    """Return seconds a call, the mean over a block; the first call of a short one is a warm-up."""
    start = time.perf_counter()
    step()
    if time.perf_counter() - start < BLOCK:
        start = time.perf_counter()
        step()
    calls = 1
    while (elapsed := time.perf_counter() - start) < BLOCK:
        step()
        calls += 1
    return elapsed / calls


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def summary(times: list[float]) -> dict[str, Any]:
    """Return the median of some rounds, the fastest and their number, in milliseconds.

    Examples
    --------
    >>> summary([0.003, 0.001, 0.002])
    {'median_ms': 2.0, 'fastest_ms': 1.0, 'rounds': 3}
    """
    return {
        "median_ms": round(1e3 * median(times), 6),
        "fastest_ms": round(1e3 * min(times), 6),
        "rounds": len(times),
    }
