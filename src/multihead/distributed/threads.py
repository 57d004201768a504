"""Ranks that are threads of one process: for tests, and to try what is meant for many machines."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from multihead.arrays import Array
from multihead.checks import integer, wrong, wrong_type
from multihead.distributed.communicator import TIMEOUT, Communicator, Messages, Moving

__all__ = ["ThreadCommunicator", "part_of", "run"]

T = TypeVar("T")
_LOOK = 0.05  # seconds between two looks at whether another rank has failed


class _World:
    """What the ranks share: who failed, and in each group of them a queue from each to each."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self._lock = threading.Lock()
        self._queues: dict[tuple[tuple[int, ...], int, int], queue.SimpleQueue[Array]] = {}

    def queue(self, group: tuple[int, ...], source: int, to: int) -> queue.SimpleQueue[Array]:
        """Return the queue from one rank of a group to another."""
        with self._lock:
            return self._queues.setdefault((group, source, to), queue.SimpleQueue())


class ThreadCommunicator(Communicator):
    """A rank that is a thread; `run` makes them, and `part_of` groups of some of them.

    Examples
    --------
    >>> from multihead.distributed import threads
    >>> threads.run(2, lambda ranks: (type(ranks).__name__, ranks.rank, ranks.size))
    [('ThreadCommunicator', 0, 2), ('ThreadCommunicator', 1, 2)]
    """

    def __init__(
        self, world: _World, group: tuple[int, ...], thread: int, timeout: float = TIMEOUT
    ) -> None:
        super().__init__(group.index(thread), len(group), timeout)
        self.world, self.group = world, group

    def start(self, sends: Messages, receives: Messages) -> Moving:
        """Hand over copies at once; what is received is waited for."""
        for rank, arrays in sends.items():
            for x in arrays:
                self.world.queue(self.group, self.rank, rank).put(x.copy())
        return _Received(self, receives)


class _Received:
    def __init__(self, at: ThreadCommunicator, receives: Messages) -> None:
        self._at, self._receives = at, receives

    def wait(self, late: float) -> None:
        for rank, arrays in self._receives.items():
            for x in arrays:
                np.copyto(x, self._next(rank, late), casting="no")
        self._receives = {}

    def _next(self, rank: int, late: float) -> Array:
        world = self._at.world
        messages = world.queue(self._at.group, rank, self._at.rank)
        while True:
            try:
                return messages.get(timeout=_LOOK)
            except queue.Empty:
                if world.failed:
                    raise ConnectionError(world.failed) from None
                if time.monotonic() > late:
                    waited = f"rank {self._at.rank} waited {self._at.timeout:g} s for rank {rank}"
                    raise TimeoutError(waited) from None


def part_of(communicator: Communicator, threads: Sequence[int]) -> ThreadCommunicator:
    """Return a communicator of some threads only, such as a row or a column of a mesh.

    Parameters
    ----------
    communicator : Communicator
        Of all threads, from `run`.
    threads : sequence of int
        Ranks there, this one among them; their order is that of ranks here.

    Returns
    -------
    Communicator

    Raises
    ------
    ValueError
        If this thread is not among them.

    Examples
    --------
    >>> from multihead.distributed import threads
    >>> def program(ranks):
    ...     side = [rank for rank in range(4) if rank % 2 == ranks.rank % 2]
    ...     return threads.part_of(ranks, side).rank
    >>> threads.run(4, program)
    [0, 0, 1, 1]
    """
    if not isinstance(communicator, ThreadCommunicator):
        raise wrong_type("communicator", "one of run()", type(communicator).__name__)
    own = communicator.group[communicator.rank]
    if own not in threads:
        raise wrong("threads", f"ranks with this one, {own}, among them", list(threads))
    return ThreadCommunicator(communicator.world, tuple(threads), own, communicator.timeout)


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
    world, lock = _World(), threading.Lock()
    group = tuple(range(size))
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            results[rank] = function(ThreadCommunicator(world, group, rank, timeout))
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
