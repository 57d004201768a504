"""Ranks of an ``mpi4py`` communicator: what `mpiexec` starts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from mpi4py import MPI

from multihead.arrays import Array
from multihead.checks import wrong_type
from multihead.distributed import mpi_end
from multihead.distributed.communicator import (
    TIMEOUT,
    Communicator,
    Messages,
    Moving,
    as_bytes,
)

__all__ = ["MPICommunicator"]

_TAGS = 32_749  # tags are below 2^15
_PIECE = 2**30  # bytes of one message: MPI counts them in 32 bits
_REST = 2e-4  # seconds between two looks of one who waits
_TURN = 1e-3  # and of the thread that lets messages travel meanwhile


_ABANDONED: list[_Moved] = []  # what MPI may still write to, after a wait that failed: for good


class MPICommunicator(Communicator):
    """The ranks of an MPI communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        ``MPI.COMM_WORLD`` if not given. It is duplicated, which all of its ranks do together, so
        that messages of others do not get in between.
    timeout : float, default 300.0
        Seconds that a wait takes at most.

    Notes
    -----
    MPI moves large messages only while it is called. Where it may be called from several threads
    (``MPI.THREAD_MULTIPLE``, mpi4py's default), a thread calls it now and then as long as something
    is under way, so that messages travel while the engine computes.

    Examples
    --------
    >>> from multihead.distributed.mpi import MPICommunicator
    >>> MPICommunicator().size
    1
    """

    def __init__(self, comm: Any = None, *, timeout: float = TIMEOUT) -> None:
        comm = MPI.COMM_WORLD if comm is None else comm
        if not isinstance(comm, MPI.Intracomm):
            raise wrong_type("comm", "an mpi4py.MPI.Intracomm", type(comm).__name__)
        super().__init__(comm.Get_rank(), comm.Get_size(), timeout)
        self._comm, made = comm.Idup()
        others = ", ".join(str(rank) for rank in range(self.size) if rank != self.rank)
        self._progress = _Progress()
        if others:
            mpi_end.watch(self._progress.end)
        try:
            _Moved(self, [others], [made], None).wait(time.monotonic() + self.timeout)
        except BaseException as error:
            self.fail(error)
            raise

    def start(self, sends: Messages, receives: Messages) -> Moving:
        """Start a send or a receive for each array."""
        requests, ranks = [], list[str]()
        for rank, arrays in receives.items():
            for tag, piece in _pieces(arrays):
                requests.append(self._comm.Irecv([piece, MPI.BYTE], rank, tag))
                ranks.append(str(rank))
        for rank, arrays in sends.items():
            for tag, piece in _pieces(arrays):
                requests.append(self._comm.Isend([piece, MPI.BYTE], rank, tag))
                ranks.append(str(rank))
        moved = _Moved(self, ranks, requests, (sends, receives))
        self._progress.add(moved)
        return moved

    def fail(self, error: BaseException) -> None:
        """Exchange nothing any more, and end the job when this process ends."""
        super().fail(error)
        mpi_end.give_up(1)


class _Moved:
    """Requests, the rank of each, and the arrays that they need for as long as they run."""

    def __init__(
        self, at: Communicator, ranks: list[str], requests: list[MPI.Request], kept: Any
    ) -> None:
        self._at, self._ranks, self._requests, self._kept = at, ranks, requests, kept
        self._lock, self._done = threading.Lock(), not requests
        self.left = False  # nobody waits any more

    @property
    def over(self) -> bool:
        """Whether nothing is to be looked at any more."""
        return self._done or self.left

    def test(self) -> bool:
        """Look whether all has come and gone; two threads may."""
        with self._lock:
            if not self._done and not self.left:
                self._done = MPI.Request.Testall(self._requests)
            return self._done

    def wait(self, late: float) -> None:
        rest = 0.0
        try:
            while not self.test():
                if time.monotonic() > late:
                    waited = f"rank {self._at.rank} waited {self._at.timeout:g} s for rank"
                    raise TimeoutError(f"{waited} {self._waits_for()}")
                time.sleep(rest)
                rest = min(_REST, rest + _REST / 50)
        except MPI.Exception as error:
            lost = f"rank {self._at.rank} lost rank {self._waits_for()}: a message failed"
            raise ConnectionError(lost) from error
        finally:
            self.left = True
            if not self._done:
                _ABANDONED.append(self)

    def _waits_for(self) -> str:
        """Name the ranks whose messages have not come, or have not gone there."""
        with self._lock:
            pairs = zip(self._ranks, self._requests, strict=True)
            waits = [rank for rank, request in pairs if not _ended(request)]
        return ", ".join(dict.fromkeys(waits or self._ranks))


def _ended(request: MPI.Request) -> bool:
    try:
        return bool(request.Test())
    except MPI.Exception:
        return False


class _Progress:
    """A thread that lives as long as something is under way, where MPI allows threads."""

    def __init__(self) -> None:
        self._lock, self._moving, self._runs = threading.Lock(), list[_Moved](), False
        self._ended = MPI.Query_thread() < MPI.THREAD_MULTIPLE

    def add(self, moved: _Moved) -> None:
        with self._lock:
            self._moving = [x for x in self._moving if not x.over]
            self._moving.append(moved)
            if not (self._runs or self._ended):
                self._runs = True
                threading.Thread(target=self._run, daemon=True).start()

    def end(self) -> bool:
        """Call MPI no more, and say whether something is under way still."""
        with self._lock:
            self._ended = True
            return not all(self._quiet(x) for x in self._moving)

    def _run(self) -> None:
        while True:
            time.sleep(_TURN)
            with self._lock:
                if not self._ended:
                    self._moving = [x for x in self._moving if not (x.left or self._quiet(x))]
                if self._ended or not self._moving:
                    self._runs = False
                    return

    @staticmethod
    def _quiet(moved: _Moved) -> bool:
        """Test; an error is for the one who waits."""
        try:
            return moved.test()
        except MPI.Exception:
            return True


def _pieces(arrays: Any) -> Iterator[tuple[int, Array]]:
    """Cut arrays into pieces that one message holds, with a tag that tells sizes apart.

    What is smaller than the array that it meets would go unnoticed.
    """
    for x in arrays:
        of_x: Array = as_bytes(x)
        for i in range(0, x.nbytes, _PIECE):
            piece = of_x[i : i + _PIECE]
            yield piece.nbytes % _TAGS, piece
