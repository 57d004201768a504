"""Attention in JAX's own operations, for forward mode and second derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from multihead.jax.call import Options, Tensors, computed_in
from multihead.jax.dropout import keep_mask


def composed(tensors: Tensors, options: Options) -> tuple[Any, Any]:
    """Compute what the engine computes; every score is in memory.

    Parameters
    ----------
    tensors : Tensors
    options : Options

    Returns
    -------
    out : array (N, L, H, Dv)
    lse : array (N, H, L)
    """
    t, compute = tensors, computed_in(tensors.query.dtype)
    q, k, v = (x.astype(compute) for x in (t.query, t.key, t.value))
    heads, keys = q.shape[2], k.shape[1]
    if t.key_lengths is not None:  # what does not exist is not read
        there = (jnp.arange(keys)[None] < t.key_lengths[:, None])[..., None, None]
        k, v = jnp.where(there, k, 0), jnp.where(there, v, 0)
    k, v = (jnp.repeat(x, heads // max(x.shape[2], 1), 2) for x in (k, v))
    scores = jnp.einsum("nlhd,nshd->nhls", q, k) * options.scale
    if options.softcap:
        scores = options.softcap * jnp.tanh(scores / options.softcap)
    steps = _steps(t)
    if t.alibi_slopes is not None:
        scores = scores - t.alibi_slopes[..., None, None] * abs(steps).astype(compute)
    hidden = _hidden(t, options, steps)
    if t.mask is not None and t.mask.dtype != bool:
        scores = scores + jnp.where(jnp.isneginf(t.mask), 0, t.mask)
    weights, lse = _softmax(scores, jnp.broadcast_to(hidden, scores.shape), t.sinks)
    if t.seed is not None:
        lead = (1, 1) if options.broadcast_dropout else weights.shape[:2]
        keep, factor = keep_mask(t.seed, (*lead, *weights.shape[2:]), options.dropout_p)
        weights = jnp.where(keep, weights * factor, 0)
    return jnp.einsum("nhls,nshd->nlhd", weights, v).astype(t.query.dtype), lse


def _steps(tensors: Tensors) -> Any:
    """Return how far each key stands from each query: (1 or N, 1, L, S)."""
    position = jnp.arange(tensors.query.shape[1])[None, None, :, None]
    if tensors.query_positions is not None:
        position = position + tensors.query_positions[:, None, None, None]
    return jnp.arange(tensors.key.shape[1])[None, None, None] - position


def _hidden(tensors: Tensors, options: Options, steps: Any) -> Any:
    """Return which keys are hidden from which queries, broadcastable to (N, H, L, S)."""
    hidden = jnp.zeros((1, 1, 1, 1), bool)
    if options.causal:
        hidden = hidden | (steps > 0)
    if options.window_right >= 0:
        hidden = hidden | (steps > options.window_right)
    if options.window_left >= 0:
        hidden = hidden | (steps < -options.window_left)
    if tensors.key_lengths is not None:
        lengths = tensors.key_lengths[:, None, None, None]
        hidden = hidden | (jnp.arange(tensors.key.shape[1])[None, None, None] >= lengths)
    if tensors.mask is not None:
        mask = tensors.mask
        hidden = hidden | (~mask if mask.dtype == bool else jnp.isneginf(mask))
    return hidden


def _softmax(scores: Any, hidden: Any, sinks: Any) -> tuple[Any, Any]:
    """Return weights, and the logarithms of their sums; where all is hidden 0 and -inf."""
    nothing = hidden.all(-1, keepdims=True)
    top = jnp.where(hidden, -jnp.inf, scores).max(-1, keepdims=True, initial=-jnp.inf)
    if sinks is not None:
        sinks = sinks[None, :, None, None]
        top = jnp.maximum(top, sinks)
    top = jax.lax.stop_gradient(jnp.where(nothing, 0, top))
    terms = jnp.where(hidden, 0, jnp.exp(jnp.where(hidden, 0, scores - top)))
    total = terms.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(jnp.where(nothing, 0, sinks - top))
    total = jnp.where(nothing, 1, total)
    lse = jnp.where(nothing, -jnp.inf, top + jnp.log(total))
    return terms / total, lse[..., 0]
