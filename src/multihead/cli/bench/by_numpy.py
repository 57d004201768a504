"""The layer as one writes it in NumPy: every score in memory, products by BLAS."""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead.cli.bench.contenders import Steps
from multihead.cli.bench.problem import Problem

MOST_BYTES = 1_000_000_000  # of one array of scores


def steps(problem: Problem) -> Steps:
    """Return forward and backward."""
    n, length, e, h = problem.shape
    d = problem.shape.head_dim
    x, d_out, w_in, b_in, w_out, b_out = problem.numpy()
    scores = n * h * length**2 * x.itemsize
    if scores > MOST_BYTES:
        raise MemoryError(f"its scores alone would take {scores / 1e9:.1f} GB")
    flat, d_flat = x.reshape(-1, e), d_out.reshape(-1, e)
    scale = x.dtype.type(d**-0.5)

    def attend() -> tuple[Any, ...]:
        projected = (flat @ w_in.T + b_in).reshape(n, length, 3, h, d)
        q, k, v = np.ascontiguousarray(projected.transpose(2, 0, 3, 1, 4))
        p = q @ k.swapaxes(-1, -2)
        p *= scale
        p -= p.max(-1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(-1, keepdims=True)
        heads = np.ascontiguousarray((p @ v).swapaxes(1, 2)).reshape(-1, e)
        return q, k, v, p, heads, heads @ w_out.T + b_out

    def forward() -> tuple[Any, ...]:
        return (attend()[-1],)

    def training() -> tuple[Any, ...]:
        q, k, v, p, heads, out = attend()
        d_heads = np.ascontiguousarray((d_flat @ w_out).reshape(n, length, h, d).swapaxes(1, 2))
        d_v = p.swapaxes(-1, -2) @ d_heads
        d_s = d_heads @ v.swapaxes(-1, -2)
        d_s -= (d_s * p).sum(-1, keepdims=True)
        d_s *= p
        d_s *= scale
        d_qkv = np.stack([d_s @ k, d_s.swapaxes(-1, -2) @ q, d_v])
        d_projected = d_qkv.transpose(1, 3, 0, 2, 4).reshape(-1, 3 * e)
        d_x = d_projected @ w_in
        return out, d_x, d_projected.T @ flat, d_projected.sum(0), d_flat.T @ heads, d_flat.sum(0)

    def read(found: Any) -> list[Any]:
        return [a.reshape(x.shape) for a in found[:2]]

    return Steps(forward, training, read)
