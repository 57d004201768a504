"""Attention of one head after another, with every score in memory: forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

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
        Query i sees keys j <= i, in global positions.
    scale : float, optional
        Factor of the scores; 1 / sqrt(D) by default.
    dropout, seed, counter
        As in `dropout_mask`.
    offsets : tuple of four int
        What to add to batch, head, query and key indices to get global positions.
    keys : array_like of int (S,), optional
        Positions of the keys in the dropout mask, instead of key offset + 0, 1, 2...
    """

    is_causal: bool = False
    scale: float | None = None
    dropout: float = 0.0
    seed: int = 0
    counter: int = 0
    offsets: tuple[int, int, int, int] = (0, 0, 0, 0)
    keys: ArrayLike | None = None


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
        Inputs, weights before dropout, which keys each query sees, which of them survived
        dropout, the factor of the scores and the factor of the survivors.
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


def _product(a: Array, b: Array, used: NDArray[np.bool_]) -> Array:
    """Multiply a by b; what is not finite in b counts only for the rows that use it."""
    finite = np.isfinite(b)
    poisoned = used.astype(float) @ ~finite > 0
    clean: Array = a @ np.where(finite, b, 0.0)
    return np.where(poisoned, np.nan, clean)


def _transposed(x: NDArray[Any]) -> NDArray[Any]:
    return np.swapaxes(x, -1, -2)


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
    q, k, v : array_like (N, H, L, D), (N, H, S, D), (N, H, S, Dv)
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
    (n, h, length, d), s = q.shape, k.shape[2]
    rule = Rules(**rules)
    scale = d**-0.5 if rule.scale is None else rule.scale
    batch, head, query, key = (
        o + np.arange(size) for o, size in zip(rule.offsets, (n, h, length, s), strict=True)
    )

    # Which keys does each query see?
    visible = np.ones((n, h, length, s), bool)
    if rule.is_causal:
        visible &= key <= query[:, None]
    added = np.zeros(())
    if attn_mask is not None:
        attn_mask = np.asarray(attn_mask)
        hides = attn_mask if attn_mask.dtype == bool else np.isneginf(attn_mask)
        visible &= ~hides
        added = np.where(hides, 0.0, attn_mask)
    sees_any = visible.any(-1, keepdims=True)

    # Softmax over the visible keys; a row without any stays zero.
    scores = np.where(visible, q @ _transposed(k) * scale + added, -np.inf)
    top = np.where(sees_any, scores.max(-1, keepdims=True, initial=-np.inf), 0.0)
    p = np.where(visible, np.exp(scores - top), 0.0)
    total = np.where(sees_any, p.sum(-1, keepdims=True), 1.0)
    lse = np.where(sees_any, top + np.log(total), -np.inf)[..., 0]
    p = np.where(visible, p / total, 0.0)

    # Dropout, then the weighted sum of the values.
    kept, keep_scale = visible, 1.0
    if rule.dropout > 0.0:
        positions = (batch, head, query, key if rule.keys is None else rule.keys)
        keep, keep_scale = dropout_mask(rule.seed, rule.counter, *positions, rule.dropout)
        kept = visible & keep
    weights = np.where(kept, p * keep_scale, 0.0)
    out = _product(weights, v, kept)
    return AttentionResult(out, weights, lse, q, k, v, p, visible, kept, scale, keep_scale)


@np.errstate(invalid="ignore", over="ignore")
def attention_backward(
    result: AttentionResult, d_out: ArrayLike, d_weights: ArrayLike | None = None
) -> tuple[Array, Array, Array, Array]:
    """Gradients of q, k, v and of the scores before scaling.

    Parameters
    ----------
    result : AttentionResult
    d_out : array_like (N, H, L, Dv)
    d_weights : array_like (N, H, L, S), optional
        Gradient of the returned weights.

    Returns
    -------
    d_q, d_k, d_v : ndarray, shaped like q, k, v
    d_scores : ndarray (N, H, L, S)
        Gradient of the scaled scores, which is that of an additive mask.

    Examples
    --------
    >>> result = attention([[[[1.0]]]], [[[[1.0], [1.0]]]], [[[[0.0], [2.0]]]])
    >>> d_q, d_k, d_v, d_scores = attention_backward(result, [[[[1.0]]]])
    >>> d_k.ravel().tolist(), d_v.ravel().tolist(), d_scores.ravel().tolist()
    ([-0.5, 0.5], [0.5, 0.5], [-0.5, 0.5])
    """
    r, d_out = result, np.asarray(d_out, np.float64)
    d_v = _product(_transposed(r.weights), d_out, _transposed(r.kept))
    d_p = d_out @ _transposed(r.v)
    if d_weights is not None:
        d_p = d_p + np.asarray(d_weights, np.float64)
    d_p = np.where(r.kept, d_p * r.keep_scale, 0.0)
    delta = (r.p * d_p).sum(-1, keepdims=True)
    d_scores = np.where(r.visible, r.p * (d_p - delta), 0.0)
    d_q = _product(d_scores * r.scale, r.k, r.visible)
    d_k = _product(_transposed(d_scores * r.scale), r.q, _transposed(r.visible))
    return d_q, d_k, d_v, d_scores
