"""Tokens of all heads on each rank to all tokens of some heads, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from multihead.arrays import Array
from multihead.distributed.communicator import Communicator
from multihead.distributed.sharding import Run, split


class Tokens(NamedTuple):
    """Where the tokens of all ranks go in the array that holds them all.

    Attributes
    ----------
    runs : list of list of Run
        Of each rank.
    offsets : ndarray (N + 1,) or None
        Where packed sequences begin there.
    """

    runs: list[list[Run]]
    offsets: Array | None

    @property
    def axis(self) -> int:
        """Of tokens: (N, H, tokens, ...), or packed (tokens, H, ...)."""
        return 2 if self.offsets is None else 0

    def held(self, rank: int) -> int:
        """How many tokens a rank has."""
        return sum(run.length for run in self.runs[rank])

    @property
    def total(self) -> int:
        """How many there are on all ranks."""
        return sum(self.held(rank) for rank in range(len(self.runs)))

    def places(self, rank: int) -> Array:
        """Return where the tokens of a rank go, in their order."""
        runs = sorted(self.runs[rank], key=lambda run: run.first)
        firsts = [0 if self.offsets is None else int(self.offsets[run.sequence]) for run in runs]
        places = [
            np.arange(run.start, run.stop) + first for run, first in zip(runs, firsts, strict=True)
        ]
        return np.concatenate([np.empty(0, np.int64), *places])


class Shares(NamedTuple):
    """Which heads each rank has.

    Attributes
    ----------
    queries : list of ndarray
        Neighbours.
    keys : list of ndarray
        Those that the queries use: several ranks may have the same.
    repeated : list of ndarray
        For each rank, which of its heads of keys serve its queries, one for each group of these:
        where ranks cut through a group, groups are smaller than before.
    """

    queries: list[Array]
    keys: list[Array]
    repeated: list[Array]


def shares(heads: int, key_heads: int, size: int) -> Shares:
    """Share out heads of queries to ranks, and with them heads of keys."""
    group = heads // key_heads
    queries, keys, repeated = [], [], []
    for start, stop in split(heads, size):
        smaller = math.gcd(group, start, stop - start)
        served = np.arange(start, stop, smaller) // group
        used, which = np.unique(served, return_inverse=True)
        queries.append(np.arange(start, stop))
        keys.append(used)
        repeated.append(which)
    return Shares(queries, keys, repeated)


def to_heads(communicator: Communicator, x: Array, heads: Sequence[Array], tokens: Tokens) -> Array:
    """Send each rank its heads of this rank's tokens; return all tokens of this rank's heads."""
    own = len(heads[communicator.rank])
    sends = [x.take(of_rank, 1) for of_rank in heads]
    receives = [_empty(x, own, tokens.held(rank), tokens.axis) for rank in range(communicator.size)]
    communicator.all_to_all(sends, receives)
    whole = _empty(x, own, tokens.total, tokens.axis)
    for rank, part in enumerate(receives):
        _at(whole, tokens.places(rank), tokens.axis, part)
    return whole


def to_tokens(
    communicator: Communicator, x: Array, heads: Sequence[Array], tokens: Tokens | None
) -> Array:
    """Send each rank its tokens of this rank's heads; return this rank's tokens of all heads.

    The inverse of `to_heads`, and the gradient too: heads that several ranks have are added up, in
    the order of ranks. Without `tokens`, all of them go to every rank.
    """
    rank, size = communicator.rank, communicator.size
    if tokens is None:
        sends, held, axis = [np.ascontiguousarray(x)] * size, x.shape[2], 2
    else:
        axis, held = tokens.axis, tokens.held(rank)
        sends = [x.take(tokens.places(r), axis) for r in range(size)]
    receives = [_empty(x, len(of_rank), held, axis) for of_rank in heads]
    communicator.all_to_all(sends, receives)
    count = 1 + max(int(of_rank.max(initial=-1)) for of_rank in heads)
    whole = _empty(x, count, held, axis)
    begun = np.zeros(count, np.bool_)
    for of_rank, part in zip(heads, receives, strict=True):
        for i, head in enumerate(of_rank.tolist()):
            if begun[head]:
                whole[:, head] += part[:, i]
            else:
                whole[:, head] = part[:, i]
            begun[head] = True
    return whole


def _empty(like: Array, heads: int, tokens: int, axis: int) -> Array:
    shape = list(like.shape)
    shape[1], shape[axis] = heads, tokens
    return np.empty(shape, like.dtype)


def _at(whole: Array, places: Array, axis: int, part: Array) -> None:
    """Write tokens to their places."""
    if axis == 0:
        whole[places] = part
    else:
        whole[:, :, places] = part
