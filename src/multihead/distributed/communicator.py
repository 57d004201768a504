"""What attention past one process needs of a transport: arrays that go from rank to rank."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from multihead.arrays import Array
from multihead.checks import number, wrong, wrong_type
from multihead.distributed.notices import ROOM, check, notice
from multihead.distributed.sharding import split

Messages: TypeAlias = Mapping[int, Sequence[Array]]

TIMEOUT = 300.0  # seconds


class Exchange(Protocol):
    """Arrays under way."""

    def wait(self) -> None:
        """Return when all that is received has come, and all that is sent may be changed.

        Raises
        ------
        TimeoutError
            If that takes longer than the communicator's `timeout`.
        ConnectionError
            If another rank is gone.
        ValueError
            If another rank sends arrays of other sizes or dtypes.
        """


class Moving(Protocol):
    """Arrays that a transport has under way."""

    def wait(self, late: float) -> None:
        """Return when all of them have come and gone, or raise when `time.monotonic()` is late."""


class Communicator(ABC):
    """One of `size` ranks that run the same program and send each other arrays.

    A transport has one method of its own, `start`. All else is made of it here, so that the order
    of additions, and with it every bit, is the same on all of them.

    Attributes
    ----------
    rank, size : int
    timeout : float
        Seconds that a wait takes at most.
    bytes_sent : int
        Of arrays to other ranks, so far; not the notices ahead of them, 256 bytes each, nor what a
        transport adds. It can be set, to 0 for instance.
    failed : str or None
        Why this rank can exchange nothing any more, once a wait has ended in an error.

    See Also
    --------
    multihead.distributed.threads, multihead.distributed.process_group

    Examples
    --------
    Each rank sends its number to the next one, and goes on until it needs what it gets:

    >>> import numpy as np
    >>> from multihead.distributed import threads
    >>> def program(ranks):
    ...     after, before = (ranks.rank + 1) % ranks.size, (ranks.rank - 1) % ranks.size
    ...     own, other = np.array([ranks.rank]), np.empty(1, np.int64)
    ...     moving = ranks.exchange({after: [own]}, {before: [other]})
    ...     moving.wait()
    ...     return int(other[0]), ranks.bytes_sent
    >>> threads.run(3, program)
    [(2, 8), (0, 8), (1, 8)]
    """

    def __init__(self, rank: int, size: int, timeout: float = TIMEOUT) -> None:
        self.rank, self.size, self.bytes_sent = rank, size, 0
        self.failed: str | None = None
        self.timeout = number("timeout", timeout)
        if not self.timeout > 0:
            raise wrong("timeout", "a number of seconds above 0", timeout)

    @abstractmethod
    def start(self, sends: Messages, receives: Messages) -> Moving:
        """Start to send arrays and to receive into others; all are dense and none is empty.

        Messages from one rank to another arrive in the order in which they were started. An array
        that comes in another size than that of the one it is meant for is never taken in.
        """

    def fail(self, error: BaseException) -> None:
        """Exchange nothing any more: what is under way belongs to nothing that follows."""
        if self.failed is None:
            self.failed = f"{type(error).__name__}: {error}"

    def exchange(self, sends: Messages, receives: Messages) -> Exchange:
        """Send arrays to ranks, and receive into arrays from ranks, while this one goes on.

        Parameters
        ----------
        sends, receives : mapping of int to sequence of ndarray
            For each other rank the arrays that go there or come from there, all C-contiguous. What
            one rank sends, the other receives in the same sizes and order. They stay as they are
            until the exchange has been waited for.

        Returns
        -------
        Exchange
            Its `wait` ends it.

        Raises
        ------
        ConnectionError
            If another rank is gone, or an exchange has failed before.
        """
        for name, messages in (("sends", sends), ("receives", receives)):
            for rank, arrays in messages.items():
                if not 0 <= rank < self.size or rank == self.rank:
                    raise wrong(name, f"ranks below {self.size} but {self.rank}", rank)
                if not all(x.flags.c_contiguous for x in arrays):
                    raise wrong(name, "C-contiguous arrays", f"another one for rank {rank}")
        if self.failed is not None:
            raise ConnectionError(f"rank {self.rank} failed before ({self.failed})")
        out, into = _full(sends), _full(receives)
        self.bytes_sent += sum(x.nbytes for arrays in out.values() for x in arrays)
        return _Exchanged(self, out, into)

    def all_to_all(self, sends: Sequence[Array], receives: Sequence[Array]) -> None:
        """Send the t-th array to rank t, and receive into the t-th from there; also one's own."""
        others = [t for t in range(self.size) if t != self.rank]
        moved = self.exchange({t: [sends[t]] for t in others}, {t: [receives[t]] for t in others})
        receives[self.rank][...] = sends[self.rank]
        moved.wait()

    def all_gather(self, array: Array, into: Sequence[Array]) -> None:
        """Receive into the t-th array what rank t gives."""
        self.all_to_all([array] * self.size, into)

    def sum(self, array: Array) -> None:
        """Add up the arrays of all ranks, in the order of ranks, into those of all ranks.

        Each rank adds up a part, and all of them get it.
        """
        flat = array.reshape(-1)
        if not np.shares_memory(flat, array) and array.size:
            raise wrong("array", "a C-contiguous one", array.strides)
        parts = [flat[slice(*span)] for span in split(flat.size, self.size)]
        given = [np.empty_like(parts[self.rank]) for _ in parts]
        self.all_to_all(parts, given)
        total = given[0]
        for part in given[1:]:
            total += part
        self.all_gather(total, parts)


class Alone(Communicator):
    """The only rank: a program for many runs with it as one process, as it is.

    Examples
    --------
    >>> from multihead.distributed import Alone
    >>> Alone().rank, Alone().size
    (0, 1)
    """

    def __init__(self) -> None:
        super().__init__(0, 1)

    def start(self, sends: Messages, receives: Messages) -> Moving:
        """Start nothing: there is no other rank."""
        return Done()


class Done:
    """An exchange that has ended."""

    def wait(self, late: float = 0.0) -> None:
        """Return."""


class _Exchanged:
    """Messages, each with a notice ahead of it."""

    def __init__(self, at: Communicator, out: Messages, into: Messages) -> None:
        self._at, self._into, self._ended = at, into, not (out or into)
        self._said = {rank: [np.empty(ROOM, np.uint8)] for rank in into}
        try:
            notices = {rank: [notice(arrays)] for rank, arrays in out.items()}
            self._parts = (at.start(notices, self._said), at.start(out, into))
        except BaseException as error:
            at.fail(error)
            raise

    def wait(self) -> None:
        if self._ended:
            return
        late = time.monotonic() + self._at.timeout
        try:
            notices, arrays = self._parts
            notices.wait(late)
            for rank, (said,) in self._said.items():
                check(rank, self._into[rank], said)
            arrays.wait(late)
        except BaseException as error:
            self._at.fail(error)
            raise
        self._ended = True


def checked_communicator(name: str, value: Any) -> Communicator:
    """Return a communicator, or raise."""
    if not isinstance(value, Communicator):
        way = "multihead.distributed.threads, .process_group and .mpi have some"
        raise wrong_type(name, f"a Communicator ({way})", type(value).__name__)
    return value


def _full(messages: Messages) -> dict[int, list[Array]]:
    """Leave out what is empty."""
    full = {rank: [x for x in arrays if x.size] for rank, arrays in messages.items()}
    return {rank: arrays for rank, arrays in full.items() if arrays}


def as_bytes(array: Array) -> Array:
    """View a dense array of any dtype as its bytes."""
    return array.reshape(-1).view(np.uint8)
