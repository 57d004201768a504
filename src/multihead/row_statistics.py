"""The logarithm of the sum of the exponentials of each query's scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.arrays import Array, decode

_LN2 = math.log(2.0)


def log_sums(tensors: AttentionTensors, options: AttentionOptions, stats: Array) -> Array:
    """Return natural logarithms (N, H, L) from the engine's statistics of a call.

    These are the largest score in log2 units and the inverse sum, (2, N, H, L); of a ragged batch
    (2, total, H), for (total, H). The engine squeezes masks that are finite, but not in log2 units:
    such rows are computed here.
    """
    top, inverse = stats
    with np.errstate(divide="ignore", invalid="ignore"):
        found = top * _LN2 - np.log(inverse)
    sums: Array = np.where(inverse == 0, -np.inf, found).astype(top.dtype, copy=False)
    limit = float(np.finfo(top.dtype).max)
    squeezed = (np.abs(top) > limit / 2) & (inverse != 0)
    for at in np.argwhere(squeezed).tolist() if squeezed.any() else ():
        exact = _of_row(*_found(tensors, at), options, top.dtype)
        sums[tuple(at)] = np.clip(exact, -limit, limit) if np.isfinite(exact) else exact
    return sums


def _found(t: AttentionTensors, at: list[int]) -> tuple[AttentionTensors, tuple[int, int, int]]:
    """Return a dense call and the sequence, head and query in it that a statistic is of."""
    if t.query_offsets is None:
        n, h, row = at
        return t, (n, h, row)
    token, h = at
    n = int(np.searchsorted(t.query_offsets, token, "right")) - 1
    (q, q_end), (k, k_end) = t.query_offsets[n : n + 2], t.key_offsets[n : n + 2]
    one = AttentionTensors(
        t.query[None, q:q_end].swapaxes(1, 2),
        t.key[None, k:k_end].swapaxes(1, 2),
        t.value[None, k:k_end].swapaxes(1, 2),
        None if t.mask is None else t.mask[_one(t.mask, n), :, : q_end - q, : k_end - k],
        None if t.alibi_slopes is None else t.alibi_slopes[_one(t.alibi_slopes, n)],
        t.sinks,
        query_positions=None if t.query_positions is None else t.query_positions[n : n + 1],
        key_lengths=None if t.key_lengths is None else t.key_lengths[n : n + 1],
    )
    return one, (0, h, token - int(q))


def _one(x: Array, n: int) -> slice:
    """Return where a sequence's part is: slopes and masks may be of all."""
    return slice(n, n + 1) if x.ndim in (2, 4) and x.shape[0] > 1 else slice(None)


def _of_row(
    tensors: AttentionTensors,
    at: tuple[int, int, int],
    options: AttentionOptions,
    compute: np.dtype[Any],
) -> float:
    """Compute the statistic of one query from all of its scores, in float64."""
    from multihead.reference import attention

    t, (n, h, row) = tensors, at
    heads, key_heads = t.query.shape[1], t.key.shape[1]
    q, k, v = (
        decode(x, compute, x.dtype == np.uint16)[None, None]
        for x in (
            t.query[n, h, row : row + 1],
            t.key[n, h * key_heads // heads],
            t.value[n, h * key_heads // heads],
        )
    )
    mask, slopes = None, None
    if t.mask is not None:
        scores = (*t.query.shape[:3], t.key.shape[2])
        mask = np.broadcast_to(t.mask, scores)[n, h, row]
        mask = ~mask if mask.dtype == np.bool_ else mask
    if t.alibi_slopes is not None:
        slopes = np.broadcast_to(t.alibi_slopes, t.query.shape[:2])[n, h : h + 1]
    before, after = (None if x < 0 else x for x in (options.window_left, options.window_right))
    first = 0 if t.query_positions is None else int(t.query_positions[n])
    result = attention(
        q,
        k,
        v,
        mask,
        is_causal=options.causal,
        window=(before, after),
        query_positions=[first + row],
        key_lengths=None if t.key_lengths is None else t.key_lengths[n : n + 1],
        softcap=options.softcap or None,
        alibi_slopes=slopes,
        sinks=None if t.sinks is None else t.sinks[h : h + 1],
        scale=options.scale,
    )
    return float(result.lse[0, 0, 0])
