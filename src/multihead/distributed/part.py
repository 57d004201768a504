"""What one rank has of a sharded attention, and the memory that it takes."""

from __future__ import annotations

from typing import NamedTuple

from multihead.distributed.work import Scheme, Work

TILE = 64  # queries and keys of a tile: those that the diagonal crosses are computed whole
MERGING = 64  # bytes for a row that is being merged: sums and what they become, in float64
ROUNDING = 4  # bytes for an element that is being rounded, beside what becomes of it


class Part(NamedTuple):
    """What one rank has, in elements: as many queries before heads are exchanged as after.

    Attributes
    ----------
    ring, shared : int
        Ranks that go round, and that exchange heads.
    queries, keys, rows : float
        Queries; keys and values; numbers of which there is one for each query and head.
    given : float
        Keys and values before the exchange: fewer where ranks share a head of them.
    own, other : float
        Scores of a turn, times head_dim: with own keys, and with another rank's.
    """

    ring: int
    shared: int
    queries: float
    keys: float
    rows: float
    given: float
    own: float
    other: float


def part_of(work: Work, scheme: Scheme) -> Part:
    """Return what each rank has."""
    ring, shared = scheme
    heads, key_heads = work.heads // shared, max(work.key_heads // shared, 1)
    length = work.length / ring
    tokens = work.batch * length
    other = tokens * length / (2 if work.causal else 1)
    own = other + (tokens * TILE / 2 if work.causal else 0)
    row = 2 * work.head_dim  # of keys and values
    return Part(
        ring,
        shared,
        queries=tokens * heads * work.head_dim,
        keys=tokens * key_heads * row,
        rows=tokens * heads,
        given=tokens / shared * work.key_heads * row,
        own=own * heads * work.head_dim,
        other=other * heads * work.head_dim,
    )


def kept(part: Part, work: Work) -> float:
    """Return the bytes that last from forward to backward."""
    given = (part.queries + part.given) * work.itemsize
    exchanged = (part.queries + part.keys) * work.itemsize if part.shared > 1 else 0.0
    outputs = part.queries * (work.itemsize + work.sumsize)  # the caller's, and the engine's
    statistics = 3 * part.rows * work.sumsize
    return given + exchanged + outputs + statistics


def passing(part: Part, work: Work) -> float:
    """Return the bytes besides, at most at a time."""
    return max(_forward(part, work), _backward(part, work) if work.training else 0.0)


def _forward(part: Part, work: Work) -> float:
    """Keys that come by and a block that is merged; then outputs that are rounded or exchanged."""
    around = min(part.ring - 1, 2) * part.keys * work.itemsize
    if part.ring > 1:
        around += part.queries * work.sumsize + part.rows * MERGING
    around -= part.queries * work.itemsize  # the caller's output is made after it
    back = part.queries * ROUNDING if work.half else 0.0
    if part.shared > 1:
        back = max(back, part.queries * work.itemsize * (2 + work.half))
    return max(around, back)


def _backward(part: Part, work: Work) -> float:
    """Gradients, and what comes by and goes home; then those that are rounded or exchanged."""
    item, sums = work.itemsize, work.sumsize
    d_out = part.queries * item * (2 if part.shared > 1 else 1)
    gradients = (part.queries + part.keys) * sums + part.rows * sums
    under_way = min(part.ring - 1, 2)
    around = under_way * part.keys * item
    if part.ring > 1:  # a block of queries is added, then gradients of keys are given
        around += (2 * under_way - 1) * part.keys * sums + max(part.queries, part.keys) * sums
    back = 0.0
    if part.shared > 1:  # queries have gone, then keys, then values: cut up, received, in order
        back = part.queries * item + part.keys * sums + part.given * sums
        back = max(back, part.queries * (item + ROUNDING) if work.half else 0.0)
    elif work.half:
        back = (part.queries + part.given) * item + max(part.queries, part.given / 2) * ROUNDING
    return d_out + gradients + max(around, back)
