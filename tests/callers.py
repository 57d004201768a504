"""Threads of the caller that call at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

CALLERS = 16
T = TypeVar("T")


def at_once(work: Callable[[int], T], callers: int = CALLERS) -> list[T]:
    """Call with 0, 1, 2, … from as many threads, which begin together."""
    barrier = threading.Barrier(callers)

    def begin(i: int) -> T:
        barrier.wait(30)
        return work(i)

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(begin, range(callers)))
