"""One engine call of a sharded one: a run of queries, and a run of keys and values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multihead import _native
from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.arrays import Array
from multihead.distributed.problem import Problem
from multihead.distributed.sharding import Run

_BIAS_KEY = 0xFFFFFFFE  # where dropout has the extra key, as in a layer


class Keys(NamedTuple):
    """Keys and values of one rank, and which they are."""

    key: Array
    value: Array
    runs: list[Run]


class Rows(NamedTuple):
    """What backward knows of queries: statistics, delta and the gradient of the output."""

    stats: Array
    delta: Array
    d_out: Array


def part(array: Array, run: Run, packed: bool) -> Array:
    """View a run of (N, H, tokens, ...), or of packed (total, H, ...), in the former's axes."""
    if not packed:
        return array[:, :, run.first : run.first + run.length]
    own: Array = array[run.first : run.first + run.length].swapaxes(0, 1)[None]
    return own


def of_rows(array: Array, run: Run, packed: bool) -> Array:
    """View a run of what has one number for each query and head."""
    return part(array[..., None], run, packed)[..., 0]


def mask_part(problem: Problem, array: Array, queries: Run, keys: Run) -> Array:
    """View what of a mask, or of its gradient, is between two runs; axes of size 1 are shared."""
    packed = problem.packed
    if packed and array.shape[0] > 1:
        array = array[queries.sequence : queries.sequence + 1]
    if array.shape[2] > 1:
        first = queries.start if packed else queries.first
        array = array[:, :, first : first + queries.length]
    return array if array.shape[3] == 1 else array[..., keys.start : keys.stop]


def forward(problem: Problem, queries: Run, keys: Run, of: Keys, out: Array, stats: Array) -> None:
    """Compute one block into `out` and `stats`, without sinks."""
    tensors = _tensors(problem, queries, keys, of)
    _native.attention_forward(_options(problem, queries, keys), tensors, out, stats, None)


def backward(
    problem: Problem, queries: Run, keys: Run, of: Keys, rows: Rows, to: AttentionTensors
) -> None:
    """Compute the gradients of one block into `to`, from statistics and delta of whole rows."""
    packed = problem.packed
    _native.attention_backward(
        _options(problem, queries, keys),
        _tensors(problem, queries, keys, of),
        np.stack([of_rows(x, queries, packed) for x in rows.stats]),
        of_rows(rows.delta, queries, packed),
        part(rows.d_out, queries, packed),
        to,
    )


def forward_extra(problem: Problem, queries: Run, out: Array, stats: Array) -> None:
    """Compute what a run of queries has of the extra key alone, as `forward`."""
    options, tensors = _of_extra(problem, queries)
    _native.attention_forward(options, tensors, out, stats, None)


def backward_extra(problem: Problem, queries: Run, rows: Rows, to: AttentionTensors) -> None:
    """Compute the gradients of the block of the extra key, as `backward`; those of each N."""
    packed = problem.packed
    _native.attention_backward(
        *_of_extra(problem, queries),
        np.stack([of_rows(x, queries, packed) for x in rows.stats]),
        of_rows(rows.delta, queries, packed),
        part(rows.d_out, queries, packed),
        to,
    )


def _of_extra(problem: Problem, queries: Run) -> tuple[AttentionOptions, AttentionTensors]:
    assert problem.extra is not None
    options = problem.options._replace(
        causal=False,
        window_left=-1,
        window_right=-1,
        batch_offset=queries.sequence,
        query_offset=queries.start,
        key_offset=_BIAS_KEY,
    )
    q = part(problem.given.arrays[0], queries, problem.packed)
    k, v = (np.repeat(x, len(q), axis=0) for x in problem.extra)
    return options, AttentionTensors(q, k, v)


def _options(problem: Problem, queries: Run, keys: Run) -> AttentionOptions:
    return problem.options._replace(
        batch_offset=queries.sequence, query_offset=queries.start, key_offset=keys.start
    )


def _tensors(problem: Problem, queries: Run, keys: Run, of: Keys) -> AttentionTensors:
    packed, rules = problem.packed, problem.rules
    mask, slopes = problem.mask, rules.alibi_slopes
    if slopes is not None and slopes.ndim == 2:
        slopes = problem.of_sequence(slopes, queries.sequence)
    lengths = problem.of_sequence(rules.key_lengths, queries.sequence)
    return AttentionTensors(
        part(problem.given.arrays[0], queries, packed),
        part(of.key, keys, packed),
        part(of.value, keys, packed),
        None if mask is None else mask_part(problem, mask.array, queries, keys),
        slopes,
        query_positions=problem.of_sequence(rules.query_positions, queries.sequence),
        key_lengths=None if lengths is None else np.clip(lengths - keys.start, 0, keys.length),
    )
