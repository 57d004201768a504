"""Where the tokens of a rank stand in their sequences, however many each of the ranks holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from multihead.arrays import Array
from multihead.distributed.context_parallel import ContextParallel
from multihead.distributed.problem import gathered
from multihead.distributed.sharding import spans_of


class Places(NamedTuple):
    """Where the tokens of this rank stand in their sequences.

    Attributes
    ----------
    positions : ndarray of int64
        Of all of them, one sequence after the other.
    lengths : ndarray of int64 (sequences,)
        Of the whole sequences.
    """

    positions: Array
    lengths: Array

    @property
    def longest(self) -> int:
        """The greatest length."""
        return int(self.lengths.max(initial=0))


def places(parallel: ContextParallel, held: Array, name: str) -> Places:
    """Find out where tokens stand, of which this rank holds so many of each sequence.

    Raises on all ranks if they do not hold what the sharding says; `name` is the argument's.
    """
    of_ranks = numbers_of_all(parallel, held.tolist())
    own = [positions_of(parallel, lengths, name) for lengths in of_ranks.T]
    return Places(np.concatenate([np.empty(0, np.int64), *own]), of_ranks.sum(axis=0))


def numbers_of_all(parallel: ContextParallel, own: Sequence[int]) -> Array:
    """Return what each rank says in a few integers: (ranks, integers)."""
    rows = gathered(parallel.communicator, np.array(own, np.int64))
    return rows if parallel.ring is None else gathered(parallel.ring, rows).reshape(-1, len(own))


def positions_of(parallel: ContextParallel, lengths: Array, name: str) -> Array:
    """Return the positions of the tokens that this rank holds.

    Parameters
    ----------
    parallel : ContextParallel
    lengths : ndarray (ranks,)
        How many tokens each rank holds.
    name : str
        Of the argument, for errors.

    Returns
    -------
    ndarray of int64

    Raises
    ------
    ValueError
        If zig-zag parts are not of the lengths of `shard`'s.
    """
    ring, inner = parallel.ring, parallel.communicator
    if ring is None:
        held = spans_of(lengths.tolist(), parallel.sharding, name)[inner.rank]
        return _whole(held)
    of_ring = lengths.reshape(ring.size, inner.size)
    together = spans_of(of_ring.sum(axis=1).tolist(), parallel.sharding, name)[ring.rank]
    first = int(of_ring[ring.rank, : inner.rank].sum())
    own: Array = _whole(together)[first : first + int(of_ring[ring.rank, inner.rank])]
    return own


def _whole(spans: Sequence[tuple[int, int]]) -> Array:
    return np.concatenate([np.empty(0, np.int64), *(np.arange(*span) for span in spans)])
