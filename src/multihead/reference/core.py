"""Attention of one head after another, with every score in memory: forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multihead.reference.dropout import dropout_mask

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Rules:
    """What stands between q kᵀ and the weights, besides masks.

    Attributes
    ----------
    is_causal : bool
        A query sees the keys up to its own position, in global positions.
    window : tuple of two int or None
        How many keys before and after its own position a query sees; None: all.
    query_positions : array_like of int (N,), optional
        Where the first query of each sequence stands among its keys; at the first by default.
    key_lengths : array_like of int (N,), optional
        How many keys of each sequence exist.
    softcap : float, optional
        Scores become softcap * tanh(score / softcap) before anything is added to them.
    alibi_slopes : array_like (H,) or (N, H), optional
        What a score loses for each step between its query's position and its key's.
    sinks : array_like (H,), optional
        A score of each head that joins the softmax and has no value.
    scale : float, optional
        Factor of the scores; 1 / sqrt(D) by default.
    dropout, seed, counter
        As in `dropout_mask`.
    offsets : tuple of four int
        What to add to batch, head, query and key indices to get global positions.
    keys : array_like of int (S,), optional
        Positions of the keys in the dropout mask, instead of key offset + 0, 1, 2...
    placed : int, optional
        How many of the keys have a position; the others, which come last, are seen from anywhere.

    Examples
    --------
    >>> Rules(window=(3, 0)).scale is None  # 1 / sqrt(D)
    True
    """

    is_causal: bool = False
    window: tuple[int | None, int | None] = (None, None)
    query_positions: ArrayLike | None = None
    key_lengths: ArrayLike | None = None
    softcap: float | None = None
    alibi_slopes: ArrayLike | None = None
    sinks: ArrayLike | None = None
    scale: float | None = None
    dropout: float = 0.0
    seed: int = 0
    counter: int = 0
    offsets: tuple[int, int, int, int] = (0, 0, 0, 0)
    keys: ArrayLike | None = None
    placed: int | None = None


@dataclass(frozen=True)
class AttentionResult:
    """What `attention` computed, and what its backward reads.

    Attributes
    ----------
    out : ndarray (N, H, L, Dv)
    weights : ndarray (N, H, L, S)
        Softmax weights after dropout; zero at hidden keys.
    lse : ndarray (N, H, L)
        Natural logarithm of the sum of the exponentials of the scores; -inf where a row has
        nothing to attend to.
    q, k, v, p, visible, kept, scale, keep_scale
        Inputs, keys and values once for every query head; weights before dropout, which keys each
        query sees, which of them survived dropout, the factor of the scores and the factor of the
        survivors.
    slope : ndarray (N, H, L, S) or float
        The derivative of the cap.
    sunk : ndarray (N, H, L)
        What the sinks take of each row.
    key_heads : int
        Hk.
    """

    out: Array
    weights: Array
    lse: Array
    q: Array
    k: Array
    v: Array
    p: Array
    visible: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    scale: float
    keep_scale: float
    slope: Array | np.float64
    sunk: Array
    key_heads: int


class AttentionGradients(NamedTuple):
    """What `attention_backward` returns.

    Attributes
    ----------
    q, k, v
        Shaped like the inputs.
    scores : ndarray (N, H, L, S)
        Of the scores that masks add to: the gradient of an additive mask.
    sinks : ndarray (H,)
    """

    q: Array
    k: Array
    v: Array
    scores: Array
    sinks: Array


def _product(a: Array, b: Array, used: NDArray[np.bool_]) -> Array:
    """Multiply a by b; what is not finite in b counts only for the rows that use it."""
    finite = np.isfinite(b)
    poisoned = used.astype(float) @ ~finite > 0
    clean: Array = a @ np.where(finite, b, 0.0)
    return np.where(poisoned, np.nan, clean)


def _transposed(x: NDArray[Any]) -> NDArray[Any]:
    return np.swapaxes(x, -1, -2)


def _sum_of_group(x: Array, heads: int) -> Array:
    """Add up what the query heads have that share a head of keys."""
    n, h, s, d = x.shape
    total: Array = x.reshape(n, heads, h // heads, s, d).sum(2) if heads else x
    return total


@np.errstate(invalid="ignore", over="ignore")
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    attn_mask: ArrayLike | None = None,
    **rules: Any,
) -> AttentionResult:
    """Softmax(q kᵀ · scale + attn_mask) v, for every batch entry and head.

    Parameters
    ----------
    q, k, v : array_like (N, H, L, D), (N, Hk, S, D), (N, Hk, S, Dv)
        Hk divides H: a head of keys and values serves H / Hk heads of queries side by side.
    attn_mask : array_like, optional
        Broadcastable to (N, H, L, S). Boolean: True = ignore. Float: added to the scores.
    **rules
        The fields of `Rules`.

    Examples
    --------
    >>> q = k = np.ones((1, 1, 2, 4))
    >>> result = attention(q, k, [[[[1.0], [3.0]]]], is_causal=True)
    >>> result.weights[0, 0].tolist(), result.out[0, 0].tolist()
    ([[1.0, 0.0], [0.5, 0.5]], [[1.0], [2.0]])
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (n, h, length, d), (key_heads, s) = q.shape, k.shape[1:3]
    k, v = (np.repeat(x, h // max(key_heads, 1), 1) for x in (k, v))
    rule = Rules(**rules)
    scale = d**-0.5 if rule.scale is None else rule.scale
    batch, head, query, key = (
        o + np.arange(size) for o, size in zip(rule.offsets, (n, h, length, s), strict=True)
    )

    # Which keys does each query see?
    first = np.zeros(n, int) if rule.query_positions is None else np.asarray(rule.query_positions)
    step = key - (first[:, None, None, None] + query[:, None])  # from a query to a key
    step = np.where(np.arange(s) < (s if rule.placed is None else rule.placed), step, 0)
    visible = np.ones((n, h, length, s), bool)
    if rule.is_causal:
        visible &= step <= 0
    before, after = rule.window
    if before is not None:
        visible &= step >= -before
    if after is not None:
        visible &= step <= after
    if rule.key_lengths is not None:
        visible &= np.arange(s) < np.asarray(rule.key_lengths)[:, None, None, None]
    added = np.zeros(())
    if attn_mask is not None:
        attn_mask = np.asarray(attn_mask)
        hides = attn_mask if attn_mask.dtype == bool else np.isneginf(attn_mask)
        visible &= ~hides
        added = np.where(hides, 0.0, attn_mask)
    sees_any = visible.any(-1, keepdims=True)

    # Scores: scaled, capped, less for keys far away, and what the mask adds.
    scores, slope = q @ _transposed(k) * scale, np.float64(1.0)
    if rule.softcap is not None:
        part = np.tanh(scores / rule.softcap)
        scores, slope = rule.softcap * part, 1 - part**2
    if rule.alibi_slopes is not None:
        slopes = np.broadcast_to(np.asarray(rule.alibi_slopes, np.float64), (n, h))
        scores = scores - slopes[..., None, None] * np.abs(step)
    scores = np.where(visible, scores + added, -np.inf)

    # Softmax over the visible keys and the sink; a row without any stays zero.
    sink = np.full(h, -np.inf) if rule.sinks is None else np.asarray(rule.sinks, np.float64)
    sink = np.broadcast_to(sink[:, None, None], (n, h, length, 1))
    top = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), sink)
    top = np.where(sees_any, top, 0.0)
    p = np.where(visible, np.exp(scores - top), 0.0)
    sunk = np.where(sees_any, np.exp(sink - top), 0.0)
    total = np.where(sees_any, p.sum(-1, keepdims=True) + sunk, 1.0)
    lse = np.where(sees_any, top + np.log(total), -np.inf)[..., 0]
    p, sunk = np.where(visible, p / total, 0.0), (sunk / total)[..., 0]

    # Dropout, then the weighted sum of the values.
    kept, keep_scale = visible, 1.0
    if rule.dropout > 0.0:
        positions = (batch, head, query, key if rule.keys is None else rule.keys)
        keep, keep_scale = dropout_mask(rule.seed, rule.counter, *positions, rule.dropout)
        kept = visible & keep
    weights = np.where(kept, p * keep_scale, 0.0)
    out = _product(weights, v, kept)
    rest = (p, visible, kept, scale, keep_scale, slope, sunk, key_heads)
    return AttentionResult(out, weights, lse, q, k, v, *rest)


@np.errstate(invalid="ignore", over="ignore")
def attention_backward(
    result: AttentionResult,
    d_out: ArrayLike,
    d_weights: ArrayLike | None = None,
    *,
    d_lse: ArrayLike | None = None,
) -> AttentionGradients:
    """Gradients of what `attention` computed.

    Parameters
    ----------
    result : AttentionResult
    d_out : array_like (N, H, L, Dv)
    d_weights : array_like (N, H, L, S), optional
        Gradient of the returned weights.
    d_lse : array_like (N, H, L), optional
        Gradient of the returned statistic.

    Returns
    -------
    AttentionGradients

    Examples
    --------
    >>> result = attention([[[[1.0]]]], [[[[1.0], [1.0]]]], [[[[0.0], [2.0]]]])
    >>> grads = attention_backward(result, [[[[1.0]]]])
    >>> grads.k.ravel().tolist(), grads.v.ravel().tolist(), grads.scores.ravel().tolist()
    ([-0.5, 0.5], [0.5, 0.5], [-0.5, 0.5])
    """
    r, d_out = result, np.asarray(d_out, np.float64)
    d_v = _product(_transposed(r.weights), d_out, _transposed(r.kept))
    d_p = d_out @ _transposed(r.v)
    if d_weights is not None:
        d_p = d_p + np.asarray(d_weights, np.float64)
    d_p = np.where(r.kept, d_p * r.keep_scale, 0.0)
    delta = (r.p * d_p).sum(-1)
    if d_lse is not None:
        delta = delta - np.asarray(d_lse, np.float64)
    d_scores = np.where(r.visible, r.p * (d_p - delta[..., None]), 0.0)
    d_products = np.where(r.visible, d_scores * r.slope, 0.0) * r.scale
    d_q = _product(d_products, r.k, r.visible)
    d_k = _product(_transposed(d_products), r.q, _transposed(r.visible))
    d_sinks: Array = -(r.sunk * delta).sum((0, 2))
    d_k, d_v = (_sum_of_group(x, r.key_heads) for x in (d_k, d_v))
    return AttentionGradients(d_q, d_k, d_v, d_scores, d_sinks)
