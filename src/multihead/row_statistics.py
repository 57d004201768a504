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

    These are the largest score in log2 units and the inverse sum, (2, N, H, L). The engine squeezes
    masks that are finite, but not in log2 units: such rows are computed here.
    """
    top, inverse = stats
    with np.errstate(divide="ignore", invalid="ignore"):
        found = top * _LN2 - np.log(inverse)
    sums: Array = np.where(inverse == 0, -np.inf, found).astype(top.dtype, copy=False)
    limit = float(np.finfo(top.dtype).max)
    squeezed = (np.abs(top) > limit / 2) & (inverse != 0)
    for n, h, row in np.argwhere(squeezed) if squeezed.any() else ():
        exact = _of_row(tensors, options, top.dtype, (int(n), int(h), int(row)))
        sums[n, h, row] = np.clip(exact, -limit, limit) if np.isfinite(exact) else exact
    return sums


def _of_row(
    tensors: AttentionTensors,
    options: AttentionOptions,
    compute: np.dtype[Any],
    at: tuple[int, int, int],
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
