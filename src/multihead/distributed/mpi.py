"""Ranks of an ``mpi4py`` communicator: what `mpiexec` starts."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from mpi4py import MPI

from multihead.arrays import Array
from multihead.checks import wrong_type
from multihead.distributed.communicator import (
    TIMEOUT,
    Communicator,
    Exchange,
    Messages,
    as_bytes,
)

__all__ = ["MPICommunicator"]

_PIECE = 2**30  # bytes of one message: MPI counts them in 32 bits
_REST = 2e-4  # seconds between two looks of one who waits
_TURN = 1e-3  # and of the thread that lets messages travel meanwhile


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
        self._comm = comm.Dup()
        self._progress = _Progress() if MPI.Query_thread() == MPI.THREAD_MULTIPLE else None

    def start(self, sends: Messages, receives: Messages) -> Exchange:
        """Start a send or a receive for each array."""
        requests, ranks = [], sorted({*sends, *receives})
        for rank, arrays in receives.items():
            for piece in _pieces(arrays):
                requests.append(self._comm.Irecv([piece, MPI.BYTE], rank))
        for rank, arrays in sends.items():
            for piece in _pieces(arrays):
                requests.append(self._comm.Isend([piece, MPI.BYTE], rank))
        moved = _Moved(self, ranks, requests, (sends, receives))
        if self._progress is not None:
            self._progress.add(moved)
        return moved


class _Moved:
    """Requests, and the arrays that they need for as long as they run."""

    def __init__(
        self, at: Communicator, ranks: list[int], requests: list[MPI.Request], kept: Any
    ) -> None:
        self._at, self._ranks, self._requests, self._kept = at, ranks, requests, kept
        self._lock, self._done = threading.Lock(), not requests
        self.left = False  # nobody waits any more

    def test(self) -> bool:
        """Look whether all has come and gone; two threads may."""
        with self._lock:
            if not self._done and not self.left:
                self._done = MPI.Request.Testall(self._requests)
            return self._done

    def wait(self) -> None:
        late, rest = time.monotonic() + self._at.timeout, 0.0
        try:
            while not self.test():
                if time.monotonic() > late:
                    ranks = ", ".join(map(str, self._ranks))
                    waited = f"rank {self._at.rank} waited {self._at.timeout:g} s for rank {ranks}"
                    raise TimeoutError(waited)
                time.sleep(rest)
                rest = min(_REST, rest + _REST / 50)
        except MPI.Exception as error:
            ranks = ", ".join(map(str, self._ranks))
            raise ConnectionError(f"rank {self._at.rank} lost rank {ranks}: {error}") from error
        finally:
            self.left = True


class _Progress:
    """A thread that lives as long as something is under way."""

    def __init__(self) -> None:
        self._lock, self._moving, self._runs = threading.Lock(), list[_Moved](), False

    def add(self, moved: _Moved) -> None:
        with self._lock:
            self._moving.append(moved)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_TURN)
            with self._lock:
                self._moving = [x for x in self._moving if not (x.left or self._quiet(x))]
                if not self._moving:
                    self._runs = False
                    return

    @staticmethod
    def _quiet(moved: _Moved) -> bool:
        """Test; an error is for the one who waits."""
        try:
            return moved.test()
        except MPI.Exception:
            return True


def _pieces(arrays: Any) -> list[Array]:
    """Cut arrays into pieces that one message holds."""
    pieces: list[Array] = []
    for x in arrays:
        of_x: Array = as_bytes(x)
        pieces += [of_x[i : i + _PIECE] for i in range(0, np.size(of_x), _PIECE)]
    return pieces
