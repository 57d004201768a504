"""Which tokens of a sequence each rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from multihead.arrays import Array, borrow, dtype_name
from multihead.checks import integer, wrong, wrong_type
from multihead.ragged import Ragged

if TYPE_CHECKING:
    from multihead.distributed.communicator import Communicator

Sharding: TypeAlias = Literal["contiguous", "zigzag"]
Spans: TypeAlias = list[tuple[int, int]]

_SHARDINGS = ("contiguous", "zigzag")


class Run(NamedTuple):
    """Tokens that one rank holds and that follow each other in their sequence.

    Attributes
    ----------
    sequence : int
        Of a ragged batch; 0 for the sequences of a dense one, which are all alike.
    start, stop : int
        Their positions in the sequence.
    first : int
        Where they begin in the rank's array.
    """

    sequence: int
    start: int
    stop: int
    first: int

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return self.stop - self.start


def split(length: int, parts: int) -> Spans:
    """Cut a length into parts that differ by one at most, the longer ones first."""
    size, more = divmod(length, parts)
    ends = accumulate((size + (i < more) for i in range(parts)), initial=0)
    return list(pairwise(ends))


def spans(length: int, size: int, sharding: Sharding) -> list[Spans]:
    """Return the spans of positions that each rank holds where a length is sharded evenly.

    Zig-zag: 2 size parts, of which rank r has the r-th and the r-th from the end, so that all have
    as much to do where queries see the keys before them alone.
    """
    if sharding == "contiguous":
        return [[span] for span in split(length, size)]
    parts = split(length, 2 * size)
    return [[parts[r], parts[-1 - r]] for r in range(size)]


def spans_of(lengths: Sequence[int], sharding: Sharding, name: str) -> list[Spans]:
    """Return the spans of ranks that hold so many tokens, or raise; `name` is the array's.

    A contiguous sequence may be cut anywhere, a zig-zag one as `spans` cuts it.
    """
    if sharding == "contiguous":
        return [[span] for span in pairwise(accumulate(lengths, initial=0))]
    found = spans(sum(lengths), len(lengths), sharding)
    held = [sum(stop - start for start, stop in of_rank) for of_rank in found]
    if held != list(lengths):
        expected = f"{held} tokens on the ranks, as shard() cuts {sum(lengths)} zig-zag"
        raise wrong(name, expected, list(lengths))
    return found


def runs_of(lengths: Array, sharding: Sharding, name: str) -> list[list[Run]]:
    """Return the runs of each rank, from (ranks, sequences) lengths; none is empty."""
    runs: list[list[Run]] = [[] for _ in lengths]
    firsts = np.cumsum(lengths, axis=1) - lengths
    for n, of_sequence in enumerate(lengths.T.tolist()):
        for rank, held in enumerate(spans_of(of_sequence, sharding, name)):
            first = int(firsts[rank, n])
            for start, stop in held:
                if stop > start:
                    runs[rank].append(Run(n, start, stop, first))
                first += stop - start
    return runs


def sharding_of(value: Any) -> Sharding:
    """Return the name of a sharding, or raise."""
    if value not in _SHARDINGS:
        raise wrong("sharding", " or ".join(map(repr, _SHARDINGS)), repr(value))
    known: Sharding = value
    return known


def positions(length: int, rank: int, size: int, sharding: Sharding = "contiguous") -> Array:
    """Return the positions in a sequence of the tokens that a rank holds.

    Parameters
    ----------
    length : int
        Of the whole sequence.
    rank, size : int
        Which rank of how many.
    sharding : {"contiguous", "zigzag"}, default "contiguous"
        One part for each rank, or two: one from the front and its mirror image from the back.

    Returns
    -------
    ndarray of int64
        What `functional.rotate` takes for `positions`.

    Raises
    ------
    ValueError
        If a number is out of range, or there is no such sharding.

    Examples
    --------
    >>> [positions(9, rank, 2, "zigzag").tolist() for rank in (0, 1)]
    [[0, 1, 2, 7, 8], [3, 4, 5, 6]]
    """
    length, size = integer("length", length, 0), integer("size", size, 1)
    held = spans(length, size, sharding_of(sharding))[integer("rank", rank, 0, size)]
    return np.concatenate([np.arange(*span) for span in held])


def shard(
    x: Any, communicator: Communicator, axis: int = -2, sharding: Sharding = "contiguous"
) -> Any:
    """Return the part of an array that this rank holds.

    Parameters
    ----------
    x : array, or Ragged
        The whole, the same on every rank. Of packed sequences, each is sharded.
    communicator : Communicator
    axis : int, default -2
        The axis of tokens.
    sharding : {"contiguous", "zigzag"}, default "contiguous"
        See `positions`.

    Returns
    -------
    array like x, or Ragged
        A copy.

    Raises
    ------
    ValueError
        If there is no such axis or sharding.
    TypeError
        If `x` is no array.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.distributed import shard, threads
    >>> x = np.arange(7)
    >>> threads.run(2, lambda ranks: shard(x, ranks, axis=0, sharding="zigzag").tolist())
    [[0, 1, 6], [2, 3, 4, 5]]
    """
    rank, size = communicator.rank, communicator.size
    if isinstance(x, Ragged):
        whole, kind = borrow("x.values", x.values)
        held = [positions(n, rank, size, sharding) for n in x.lengths.tolist()]
        rows = [places + first for places, first in zip(held, x.offsets.tolist(), strict=False)]
        values = whole[np.concatenate([np.empty(0, np.int64), *rows])]
        return Ragged(kind.wrap(values), np.cumsum([0, *map(len, held)]))
    array, kind = borrow("x", x)
    axis = _axis(array, axis)
    return kind.wrap(array.take(positions(array.shape[axis], rank, size, sharding), axis))


def gather(
    x: Any, communicator: Communicator, axis: int = -2, sharding: Sharding = "contiguous"
) -> Any:
    """Return on every rank the whole of which each holds a part: the inverse of `shard`.

    Parameters
    ----------
    x : array
        This rank's part: of the dtype and, but for `axis`, the shape of the others.
    communicator : Communicator
    axis : int, default -2
    sharding : {"contiguous", "zigzag"}, default "contiguous"

    Returns
    -------
    array like x

    Raises
    ------
    ValueError
        If there is no such axis or sharding, or the lengths are not those of it.
    TypeError
        If `x` is no array.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.distributed import gather, shard, threads
    >>> def there_and_back(ranks):
    ...     x = shard(np.arange(7), ranks, axis=0, sharding="zigzag")
    ...     return gather(x, ranks, axis=0, sharding="zigzag").tolist()
    >>> threads.run(2, there_and_back)
    [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
    """
    from multihead.distributed.agreement import agree  # which needs what is above

    error: Exception | None = None
    own, kind, said = np.empty(0), None, dict[str, Any]()
    try:
        if isinstance(x, Ragged):
            raise wrong_type("x", "an array (x.values)", "Ragged")
        array, kind = borrow("x", x)
        axis = _axis(array, axis)
        own = np.ascontiguousarray(np.moveaxis(array, axis, 0))
        said = {"axis": axis, "sharding": sharding_of(sharding), "x": list(own.shape[1:])}
        said["dtype of x"] = dtype_name(array, kind)
    except Exception as found:
        error = found
    agree(communicator, said, error)
    assert kind is not None
    counts = [np.empty(1, np.int64) for _ in range(communicator.size)]
    communicator.all_gather(np.array([len(own)]), counts)
    lengths = [int(n[0]) for n in counts]
    held = spans_of(lengths, sharding, "x")
    parts = [np.empty((n, *own.shape[1:]), own.dtype) for n in lengths]
    communicator.all_gather(own, parts)
    whole = np.empty((sum(lengths), *own.shape[1:]), own.dtype)
    for part, of_rank in zip(parts, held, strict=True):
        first = 0
        for start, stop in of_rank:
            whole[start:stop] = part[first : first + stop - start]
            first += stop - start
    return kind.wrap(np.ascontiguousarray(np.moveaxis(whole, 0, axis)))


def _axis(array: Array, axis: int) -> int:
    axis = integer("axis", axis, -array.ndim, array.ndim)
    return axis % array.ndim
