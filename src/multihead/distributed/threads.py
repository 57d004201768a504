"""Ranks that are threads of one process: for tests, and to try what is meant for many machines."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from multihead.arrays import Array
from multihead.checks import integer
from multihead.distributed.communicator import TIMEOUT, Communicator, Exchange, Messages

__all__ = ["ThreadCommunicator", "run"]

T = TypeVar("T")
_LOOK = 0.05  # seconds between two looks at whether another rank has failed


class _World:
    """What the ranks share: a queue from each to each, and who failed."""

    def __init__(self, size: int) -> None:
        pairs = [(a, b) for a in range(size) for b in range(size)]
        self.queues: dict[tuple[int, int], queue.SimpleQueue[Array]] = {
            pair: queue.SimpleQueue() for pair in pairs
        }
        self.failed: str | None = None


class ThreadCommunicator(Communicator):
    """A rank that is a thread; `run` makes them."""

    def __init__(self, world: _World, rank: int, size: int, timeout: float) -> None:
        super().__init__(rank, size, timeout)
        self._world = world

    def start(self, sends: Messages, receives: Messages) -> Exchange:
        """Hand over copies at once; what is received is waited for."""
        for rank, arrays in sends.items():
            for x in arrays:
                self._world.queues[self.rank, rank].put(x.copy())
        return _Received(self, self._world, receives)


class _Received:
    def __init__(self, at: Communicator, world: _World, receives: Messages) -> None:
        self._at, self._world, self._receives = at, world, receives

    def wait(self) -> None:
        late = time.monotonic() + self._at.timeout
        for rank, arrays in self._receives.items():
            for x in arrays:
                np.copyto(x, self._next(rank, late), casting="no")
        self._receives = {}

    def _next(self, rank: int, late: float) -> Array:
        while True:
            try:
                return self._world.queues[rank, self._at.rank].get(timeout=_LOOK)
            except queue.Empty:
                if self._world.failed:
                    raise ConnectionError(self._world.failed) from None
                if time.monotonic() > late:
                    waited = f"rank {self._at.rank} waited {self._at.timeout:g} s for rank {rank}"
                    raise TimeoutError(waited) from None


def run(size: int, function: Callable[[Communicator], T], timeout: float = TIMEOUT) -> list[T]:
    """Call ``function(communicator)`` in `size` threads, and return what each returned.

    Parameters
    ----------
    size : int
    function : callable
        It is called once for each rank, in a thread of its own.
    timeout : float, default 300.0
        Seconds that a rank waits for another at most.

    Returns
    -------
    list
        By rank.

    Raises
    ------
    Exception
        The first that a rank raised by itself; the ranks that wait for it end too.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.distributed import threads
    >>> def program(communicator):
    ...     x = np.full(3, communicator.rank)
    ...     communicator.sum(x)
    ...     return x.tolist()
    >>> threads.run(4, program)
    [[6, 6, 6], [6, 6, 6], [6, 6, 6], [6, 6, 6]]
    """
    size = integer("size", size, 1)
    world, lock = _World(size), threading.Lock()
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            results[rank] = function(ThreadCommunicator(world, rank, size, timeout))
        except BaseException as error:
            with lock:
                errors.append(error)
                if world.failed is None:
                    world.failed = f"rank {rank} ended with {type(error).__name__}: {error}"

    workers = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return results
