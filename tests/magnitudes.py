"""How large gradients would be if nothing cancelled: what rounding errors are relative to.

The gradient of a score is p (d_p - delta), a difference that is zero for a query with one key and
small for one that sees almost only one. Its rounding error is not: it is relative to p d_p and
p delta. Here the squares of all terms are added up, where the gradient adds up the terms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead.reference import AttentionResult, Result


def attention_squares(
    core: AttentionResult, d_out: Any, d_weights: Any = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared sizes of the gradients of q, k and the scores, from those of d_out, d_weights."""
    p, scale = core.p**2, core.scale**2
    d_p = (d_out @ core.v.swapaxes(2, 3) ** 2 + d_weights) * core.keep_scale**2
    d_p = np.where(core.kept, d_p, 0.0)
    d_scores = np.where(core.visible, p * (d_p + (p * d_p).sum(-1, keepdims=True)), 0.0)
    return d_scores @ core.k**2 * scale, d_scores.swapaxes(2, 3) @ core.q**2 * scale, d_scores


def largest(squares: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest size of each."""
    return {name: float(np.sqrt(x.max(initial=0.0))) for name, x in squares.items()}


@np.errstate(invalid="ignore", over="ignore")
def attention_magnitudes(core: AttentionResult, d_out: Any) -> dict[str, float]:
    """The sizes for the gradients of q and k."""
    d_q, d_k, _ = attention_squares(core, np.asarray(d_out, np.float64) ** 2)
    return largest({"q": d_q, "k": d_k})


@np.errstate(invalid="ignore", over="ignore")
def magnitudes(result: Result, d_out: Any, d_weights: Any = None) -> dict[str, float]:
    """The sizes for the gradients of a layer that go through its scores."""
    core, params = result.core, {name: x**2 for name, x in result.params.items()}
    query, key = (x**2 for x in result.inputs[:2])
    n, h, length, _ = core.p.shape
    s = key.shape[1]
    d_merged = np.asarray(d_out, np.float64) ** 2 @ params["out_proj.weight"]
    d_heads = d_merged.reshape(n, length, h, core.v.shape[-1]).swapaxes(1, 2)
    weights = np.zeros(()) if d_weights is None else np.asarray(d_weights, np.float64) ** 2
    if weights.ndim == 3:
        weights = weights[:, None] / h**2
    *d_projected, d_scores = attention_squares(core, d_heads, weights)
    d_q, d_k = d_projected
    sinks = core.sunk**2 * (d_q.mean(-1) + d_scores.sum(-1))
    d_k = d_k.reshape(n, core.key_heads, h // core.key_heads, *d_k.shape[2:]).sum(2)
    d_q, d_k = (
        x.swapaxes(1, 2).reshape(n, x.shape[2], x.shape[1] * x.shape[3]) for x in (d_q, d_k)
    )
    d_scores, extra, d_k = d_scores[..., :s], d_k[:, s:], d_k[:, :s]
    if "in_proj_weight" in params:
        q_weight, k_weight, _ = np.split(params["in_proj_weight"], 3)
    else:
        q_weight, k_weight = params["q_proj_weight"], params["k_proj_weight"]
    shape = (1, 1, 1, 1) if result.attn_mask is None else result.attn_mask.shape
    shape = (1,) * (4 - len(shape)) + shape
    squares = {
        "query": d_q @ q_weight,
        "key": d_k @ k_weight,
        "q_proj_weight": np.tensordot(d_q, query, ((0, 1), (0, 1))),
        "k_proj_weight": np.tensordot(d_k, key, ((0, 1), (0, 1))),
        "in_proj_bias": np.concatenate([d_q.sum((0, 1)), d_k.sum((0, 1))]),
        "sinks": sinks.sum((0, 2)),
        "bias_k": extra.sum(0),
        "attn_mask": d_scores.sum(tuple(axis for axis, size in enumerate(shape) if size == 1)),
        "key_padding_mask": d_scores.sum((1, 2)),
    }
    sizes = largest(squares)
    return sizes | {"in_proj_weight": max(sizes["q_proj_weight"], sizes["k_proj_weight"])}
