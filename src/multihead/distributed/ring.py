"""Ring attention: queries stay, keys and values come by, of one rank after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from multihead import _native
from multihead.arguments import AttentionTensors
from multihead.arrays import Array
from multihead.distributed import blocks
from multihead.distributed.blocks import Keys, Rows, mask_part, of_rows, part
from multihead.distributed.communicator import Communicator, Done, Exchange
from multihead.distributed.merged import Merged, log2_scores
from multihead.distributed.problem import Problem
from multihead.distributed.sums import Sums
from multihead.memory import new_array, new_zeros


class Result(NamedTuple):
    """What forward leaves: all of this rank's queries, in the dtype computed in."""

    out: Array
    lse: Array
    stats: Array


class Back(NamedTuple):
    """What backward is given, in the engine's axes; whether mask and sinks want their gradients."""

    d_out: Array
    d_lse: Array | None
    wanted: tuple[bool, bool]


class Gradients(NamedTuple):
    """What backward returns, in the dtype computed in; mask and sinks where wanted.

    Those of the extra key and value, shaped like them, are of this rank's queries alone.
    """

    query: Array
    key: Array
    value: Array
    mask: Array | None
    sinks: Array | None
    extra: tuple[Array, Array] | None = None


class _Turn(NamedTuple):
    """One turn of the ring on one rank: whose keys come, whose queries get ours."""

    rank: int
    source: int
    keys: Keys | None  # None: no query here sees them
    reader: int


def _turns(problem: Problem, communicator: Communicator) -> Iterator[_Turn]:
    """Go round the ring: own keys first, then those of the rank before, and so on.

    Every rank sends its keys straight to the ranks that see them, in turn s to the s-th after it:
    no rank waits for another to pass on what it has got, and what nobody sees is not sent. The next
    keys are under way while the present ones are used.
    """
    _, k, v = (np.ascontiguousarray(x) for x in problem.given.arrays)
    rank, size = communicator.rank, communicator.size
    lengths = [sum(run.length for run in runs) for runs in problem.key_runs]
    turn = _Turn(rank, rank, Keys(k, v, problem.key_runs[rank]), rank)
    for after in range(1, size):
        source, reader = (rank - after) % size, (rank + after) % size
        sends = [k, v] if problem.needs(reader, rank) else []
        receives: list[Array] = []
        if problem.needs(rank, source):
            receives = [_like(problem, x, lengths[source]) for x in (k, v)]
        moving = communicator.exchange({reader: sends}, {source: receives})
        yield turn
        moving.wait()
        keys = Keys(receives[0], receives[1], problem.key_runs[source]) if receives else None
        turn = _Turn(rank, source, keys, reader)
    yield turn


def _like(problem: Problem, x: Array, tokens: int) -> Array:
    """Make an array for other keys or values."""
    axis = 0 if problem.packed else 2
    return np.empty((*x.shape[:axis], tokens, *x.shape[axis + 1 :]), x.dtype)


def forward(problem: Problem, communicator: Communicator) -> Result:
    """Compute attention of this rank's queries over the keys of all ranks."""
    q, _, v = problem.given.arrays
    compute, packed = problem.given.element.compute, problem.packed
    out = new_array("out", (*q.shape[:-1], v.shape[-1]), compute)
    own = problem.query_runs[communicator.rank]
    merged = {run: Merged(problem, run, part(out, run, packed)) for run in own}
    for turn in _turns(problem, communicator):
        if turn.keys is not None:
            for queries, keys in problem.pairs(turn.rank, turn.source):
                merged[queries].add(turn.keys, keys)
    stats = new_array("stats", (2, *out.shape[:-1]), compute)
    lse = new_array("lse", out.shape[:-1], compute)
    for rows in merged.values():
        if problem.extra is not None:
            rows.add_extra()
        if problem.rules.sinks is not None:
            rows.add_sinks(problem.rules.sinks)
        of_run = np.stack([of_rows(x, rows.run, packed) for x in stats])
        rows.finish(of_run)
        for x, here in zip(stats, of_run, strict=True):
            of_rows(x, rows.run, packed)[...] = here
        of_rows(lse, rows.run, packed)[...] = rows.log_sums()
    return Result(out, lse, stats)


def backward(
    problem: Problem,
    communicator: Communicator,
    result: Result,
    back: Back,
) -> Gradients:
    """Compute the gradients of this rank's queries, and of its keys from the queries of all ranks.

    Keys and values come by as in forward. Their gradients from here go straight home, where they
    are added in the order of the turns.
    """
    q, compute = problem.given.arrays[0], problem.given.element.compute
    rank = communicator.rank
    delta = new_array("delta", result.stats.shape[1:], compute)
    _native.delta(back.d_out, result.out, delta)
    if back.d_lse is not None:
        delta -= back.d_lse
    rows = Rows(result.stats, delta, back.d_out)
    d_q, d_mask = Sums(q, compute, problem.packed), None
    if back.wanted[0] and problem.mask is not None and problem.mask.gradient is not None:
        d_mask = new_zeros("d_attn_mask", problem.mask.gradient.engine_shape, compute)

    turns = _turns(problem, communicator)
    home = _of_keys(problem, next(turns), rows, d_q, d_mask)
    assert home is not None  # own keys are always there
    coming = _Coming(home)
    for turn in turns:
        done = _of_keys(problem, turn, rows, d_q, d_mask)
        coming.add(communicator, turn, done, problem.needs(turn.reader, rank))
    coming.finish()
    d_extra = _of_extra(problem, rank, rows, d_q)
    d_mask = _mask_of_all(problem, communicator, d_mask)
    d_sinks = _sink_gradient(problem, communicator, rows) if back.wanted[1] else None
    return Gradients(d_q.finish(problem.query_runs[rank]), *home, d_mask, d_sinks, d_extra)


def _of_keys(
    problem: Problem, turn: _Turn, rows: Rows, d_q: Sums, d_mask: Array | None
) -> tuple[Array, Array] | None:
    """Return the gradients of the keys and values of a turn; add to those of queries and mask."""
    if turn.keys is None:
        return None
    compute = problem.given.element.compute
    d_k, d_v = (Sums(x, compute, problem.packed) for x in (turn.keys.key, turn.keys.value))
    for queries, keys in problem.pairs(turn.rank, turn.source):
        to = AttentionTensors(d_q.target(queries), d_k.target(keys), d_v.target(keys))
        of_mask = None if d_mask is None else mask_part(problem, d_mask, queries, keys)
        if of_mask is not None:
            to = to._replace(mask=np.empty(of_mask.shape, compute))
        blocks.backward(problem, queries, keys, turn.keys, rows, to)
        d_q.add(queries, to.query)
        d_k.add(keys, to.key)
        d_v.add(keys, to.value)
        if of_mask is not None:
            of_mask += to.mask
    return d_k.finish(turn.keys.runs), d_v.finish(turn.keys.runs)


def _of_extra(problem: Problem, rank: int, rows: Rows, d_q: Sums) -> tuple[Array, Array] | None:
    """Return the gradients of the extra key and value; add to those of queries."""
    if problem.extra is None:
        return None
    compute = problem.given.element.compute
    totals = [np.zeros(x.shape) for x in problem.extra]
    for queries in problem.query_runs[rank]:
        target = d_q.target(queries)
        found = [np.empty((len(target), *x.shape[1:]), compute) for x in problem.extra]
        blocks.backward_extra(problem, queries, rows, AttentionTensors(target, *found))
        d_q.add(queries, target)
        for total, more in zip(totals, found, strict=True):
            total += more.sum(axis=0, keepdims=True, dtype=np.float64)
    d_k, d_v = (total.astype(compute) for total in totals)
    return d_k, d_v


class _Coming:
    """Gradients that come home, one turn after the other, while the next ones are computed."""

    def __init__(self, home: tuple[Array, Array]) -> None:
        self._home, self._given = home, list[Array]()
        self._moving: Exchange = Done()

    def add(
        self,
        communicator: Communicator,
        turn: _Turn,
        done: tuple[Array, Array] | None,
        awaited: bool,
    ) -> None:
        """Send what is done to where it belongs, and take in what came by the turn before."""
        given = [np.empty_like(x) for x in self._home] if awaited else []
        moving = communicator.exchange({turn.source: done or ()}, {turn.reader: given})
        self.finish()
        self._moving, self._given = moving, given

    def finish(self) -> None:
        """Wait for what is under way, and add it."""
        self._moving.wait()
        for total, more in zip(self._home, self._given, strict=False):
            total += more


def _mask_of_all(
    problem: Problem, communicator: Communicator, d_mask: Array | None
) -> Array | None:
    """Sum over the ranks the gradient of a mask that all of them share."""
    if d_mask is not None and problem.shared:
        communicator.sum(d_mask)
    return d_mask


def _sink_gradient(problem: Problem, communicator: Communicator, rows: Rows) -> Array | None:
    """Return the gradient of the sinks, (H,), of the queries of all ranks."""
    sinks = problem.rules.sinks
    if sinks is None:
        return None
    top, inverse = rows.stats.astype(np.float64)
    scores = log2_scores(sinks) if problem.packed else log2_scores(sinks)[:, None]
    weight = np.exp2(scores - top) * inverse
    total: Array = -(weight * rows.delta).sum(axis=0 if problem.packed else (0, 2))
    communicator.sum(total)
    return total.astype(sinks.dtype)
