"""Multi-head attention in plain float64 NumPy, forward and backward, written to be read.

This is the oracle that the tests hold the native engine to. Nothing here is fast: the scores of
every query against every key stand in memory. `forward` runs six numbered passes, `backward` runs
the same passes in reverse. Arrays are batch first: query (N, L, E), key (N, S, kdim), value
(N, S, vdim).

The maths is that of Vaswani et al., "Attention Is All You Need" (2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "AttentionResult",
    "Result",
    "attention",
    "attention_backward",
    "backward",
    "dropout_mask",
    "forward",
]

Array: TypeAlias = NDArray[np.float64]
Words: TypeAlias = NDArray[np.uint64]

BIAS_KEY = 0xFFFFFFFE  # the position of bias_k in the dropout mask
ZERO_KEY = 0xFFFFFFFF  # the position of the zero row


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


@dataclass(frozen=True)
class Result:
    """What `forward` computed, and what `backward` reads.

    Attributes
    ----------
    out : ndarray (N, L, E)
    weights : ndarray (N, H, L, S')
        After dropout, per head; S' is S plus the columns of bias_k and the zero row.
    inputs : tuple of ndarray
        query, key and value, zero at keys that ``key_padding_mask`` hides.
    merged : ndarray (N, L, E)
        The heads side by side, before the output projection.
    """

    out: Array
    weights: Array
    inputs: tuple[Array, Array, Array]
    merged: Array
    core: AttentionResult
    params: dict[str, Array]
    attn_mask: NDArray[Any] | None
    key_padding_mask: NDArray[Any] | None


def _philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Words, Words]:
    """First two words of Philox4x32-10 (Salmon et al. 2011), vectorised over the counter."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ k0,
            b & low,
            (a >> np.uint64(32)) ^ c3 ^ k1,
            a & low,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1


def dropout_mask(
    seed: int,
    counter: int,
    batch: ArrayLike,
    heads: ArrayLike,
    queries: ArrayLike,
    keys: ArrayLike,
    p: float,
) -> tuple[NDArray[np.bool_], float]:
    """Which weights survive dropout: a pure function of the call and of the positions.

    Parameters
    ----------
    seed, counter : int
        The state of the generator, each 64 bits; counter grows by one a call.
    batch, heads, queries, keys : int or 1-D array_like of int
        Positions along each axis. Keys 0xFFFFFFFE and 0xFFFFFFFF stand for bias_k and the zero row.
    p : float
        Probability of dropping, rounded to a multiple of 1/65536.

    Returns
    -------
    keep : ndarray of bool (N, H, L, S)
    scale : float
        The factor of the survivors, 1 / (1 - p) for the rounded p.

    Examples
    --------
    >>> keep, scale = dropout_mask(7, 0, [0], [0, 1], range(100), range(100), 0.25)
    >>> keep.shape, round(float(keep.mean()), 2), round(scale, 3)
    ((1, 2, 100, 100), 0.75, 1.333)
    >>> part, _ = dropout_mask(7, 0, [0], [1], [42], range(100), 0.25)
    >>> bool((part[0, 0, 0] == keep[0, 1, 42]).all())
    True
    """
    b, h, i, j = (
        np.atleast_1d(np.asarray(x)).astype(np.uint64) for x in (batch, heads, queries, keys)
    )
    b, h, i = b[:, None, None, None], h[:, None, None], i[:, None]
    if p >= 1.0:
        return np.zeros(np.broadcast_shapes(b.shape, h.shape, i.shape, j.shape), bool), 0.0
    low = 0xFFFFFFFF
    call = (counter & low, counter >> 32 & low, 0x6D756C74, 0x68656164)
    key = _philox(call, (seed & low, seed >> 32 & low))
    row_low, row_high = (
        w.astype(np.uint32) for w in _philox((i & np.uint64(low), i >> np.uint64(32), h, b), key)
    )
    pair = j.astype(np.uint32) >> np.uint32(1)
    x = row_low ^ pair * np.uint32(0x9E3779B9)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x ^= x >> np.uint32(15)
    x += row_high
    x *= np.uint32(0xD35A2D97)
    x ^= x >> np.uint32(15)
    half = np.uint32(16) * (j.astype(np.uint32) & np.uint32(1))
    threshold = min(int(p * 65536 + 0.5), 65535)
    keep = (x >> half & np.uint32(0xFFFF)) >= threshold
    return keep, 65536 / (65536 - threshold)


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
    *,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    counter: int = 0,
    offsets: tuple[int, int, int, int] = (0, 0, 0, 0),
    keys: ArrayLike | None = None,
) -> AttentionResult:
    """Softmax(q kᵀ · scale + attn_mask) v, for every batch entry and head.

    Parameters
    ----------
    q, k, v : array_like (N, H, L, D), (N, H, S, D), (N, H, S, Dv)
    attn_mask : array_like, optional
        Broadcastable to (N, H, L, S). Boolean: True = ignore. Float: added to the scores.
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

    Examples
    --------
    >>> q = k = np.ones((1, 1, 2, 4))
    >>> result = attention(q, k, [[[[1.0], [3.0]]]], is_causal=True)
    >>> result.weights[0, 0].tolist(), result.out[0, 0].tolist()
    ([[1.0, 0.0], [0.5, 0.5]], [[1.0], [2.0]])
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (n, h, length, d), s = q.shape, k.shape[2]
    scale = d**-0.5 if scale is None else scale
    batch, head, query, key = (
        o + np.arange(size) for o, size in zip(offsets, (n, h, length, s), strict=True)
    )

    # Which keys does each query see?
    visible = np.ones((n, h, length, s), bool)
    if is_causal:
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
    if dropout > 0.0:
        positions = key if keys is None else keys
        keep, keep_scale = dropout_mask(seed, counter, batch, head, query, positions, dropout)
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


def _additive(mask: NDArray[Any]) -> Array:
    """Turn a mask into numbers to add to the scores: -inf where a boolean one is True."""
    return np.where(mask, -np.inf, 0.0) if mask.dtype == bool else mask.astype(np.float64)


def _projections(params: Mapping[str, Array]) -> tuple[list[Array], list[Array | float]]:
    """Weights (E, E), (E, kdim), (E, vdim) of q, k and v, and their biases (E,)."""
    if "in_proj_weight" in params:
        weights = np.split(params["in_proj_weight"], 3)
    else:
        weights = [params[f"{x}_proj_weight"] for x in "qkv"]
    has_bias = "in_proj_bias" in params
    biases: list[Array | float] = [*np.split(params["in_proj_bias"], 3)] if has_bias else [0.0] * 3
    return weights, biases


def _split_heads(x: Array, num_heads: int) -> Array:
    n, length, e = x.shape
    heads: Array = x.reshape(n, length, num_heads, e // num_heads).swapaxes(1, 2)
    return heads


def _merge_heads(x: Array) -> Array:
    n, h, length, d = x.shape
    merged: Array = x.swapaxes(1, 2).reshape(n, length, h * d)
    return merged


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum x over the axes along which an array of `shape` was broadcast to it."""
    padded = (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(a for a, size in enumerate(padded) if size == 1)
    summed: Array = x.sum(axes, keepdims=True)
    return summed.reshape(shape)


@np.errstate(invalid="ignore", over="ignore")
def forward(
    params: Mapping[str, ArrayLike],
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    num_heads: int,
    key_padding_mask: ArrayLike | None = None,
    attn_mask: ArrayLike | None = None,
    is_causal: bool = False,
    add_zero_attn: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    counter: int = 0,
) -> Result:
    """Run the layer, batch first, in float64.

    Parameters
    ----------
    params : mapping
        Under the names of the state dict: in_proj_weight (3E, E) or q_proj_weight,
        k_proj_weight, v_proj_weight; in_proj_bias (3E,), bias_k and bias_v (1, 1, E),
        out_proj.bias (E,) where the layer has them; out_proj.weight (E, E).
    query, key, value : array_like (N, L, E), (N, S, kdim), (N, S, vdim)
    num_heads : int
    key_padding_mask : array_like (N, S), optional
        Boolean: True = ignore the key. Float: added to the scores. A hidden key is never read.
    attn_mask : array_like, optional
        Broadcastable to (N, H, L, S). Boolean: True = ignore. Float: added to the scores.
    is_causal : bool
        Query i sees keys j <= i, besides what the masks say.
    add_zero_attn : bool
        Append a zero key with a zero value.
    dropout, seed, counter
        As in `dropout_mask`.

    Returns
    -------
    Result

    Examples
    --------
    >>> params = {"in_proj_weight": np.tile(np.eye(2), (3, 1)), "out_proj.weight": np.eye(2)}
    >>> x = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> forward(params, x, x, x, num_heads=1, is_causal=True).out.round(2).tolist()
    [[[1.0, 0.0], [0.33, 0.67]]]
    """
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    (n, length, _), s = query.shape, key.shape[1]

    # 1. One mask for everything; what key_padding_mask hides is never read.
    mask = np.zeros((n, num_heads, length, s))
    if attn_mask is not None:
        attn_mask = np.asarray(attn_mask)
        mask = mask + _additive(attn_mask)
    if key_padding_mask is not None:
        key_padding_mask = np.asarray(key_padding_mask)
        padding = _additive(key_padding_mask)
        padded = np.isneginf(padding)
        key, value = (np.where(padded[..., None], 0.0, x) for x in (key, value))
        hidden = np.isneginf(mask) | padded[:, None, None]
        both = np.maximum(mask + padding[:, None, None], np.finfo(np.float64).min)
        mask = np.where(hidden, -np.inf, both)
    if is_causal:
        mask = np.where(np.arange(s) > np.arange(length)[:, None], -np.inf, mask)

    # 2. Projections.
    weights, biases = _projections(p)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))

    # 3. Extra keys, which every query sees: bias_k with bias_v, then the zero row.
    positions = [*range(s)]
    if "bias_k" in p:
        k, v = (
            np.concatenate([x, np.tile(p[b], (n, 1, 1))], 1)
            for x, b in ((k, "bias_k"), (v, "bias_v"))
        )
        positions.append(BIAS_KEY)
    if add_zero_attn:
        k, v = (np.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (k, v))
        positions.append(ZERO_KEY)
    mask = np.pad(mask, ((0, 0), (0, 0), (0, 0), (0, len(positions) - s)))

    # 4. Heads.
    q, k, v = (_split_heads(x, num_heads) for x in (q, k, v))

    # 5. Attention.
    core = attention(
        q,
        k,
        v,
        mask,
        dropout=dropout,
        seed=seed,
        counter=counter,
        keys=np.array(positions, np.uint64),
    )

    # 6. Heads side by side, and the output projection.
    merged = _merge_heads(core.out)
    out = merged @ p["out_proj.weight"].T + p.get("out_proj.bias", 0.0)
    return Result(
        out, core.weights, (query, key, value), merged, core, p, attn_mask, key_padding_mask
    )


@np.errstate(invalid="ignore", over="ignore")
def backward(
    result: Result, d_out: ArrayLike, d_weights: ArrayLike | None = None
) -> dict[str, Array]:
    """Gradients of everything that went into `forward`.

    Parameters
    ----------
    result : Result
    d_out : array_like (N, L, E)
    d_weights : array_like (N, H, L, S') or (N, L, S'), optional
        Gradient of the returned weights, per head or averaged over the heads.

    Returns
    -------
    dict
        query, key, value; every parameter under its name; attn_mask and key_padding_mask where
        they are float, in their own shapes.

    Examples
    --------
    >>> params = {"in_proj_weight": np.tile(np.eye(2), (3, 1)), "out_proj.weight": np.eye(2)}
    >>> x = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> result = forward(params, x, x, x, num_heads=1)
    >>> grads = backward(result, np.ones((1, 2, 2)))
    >>> sorted(grads)
    ['in_proj_weight', 'key', 'out_proj.weight', 'query', 'value']
    >>> grads["value"].sum()
    np.float64(4.0)
    """
    r, p, d_out = result, result.params, np.asarray(d_out, np.float64)
    num_heads, s = r.core.q.shape[1], r.inputs[1].shape[1]
    grads: dict[str, Array] = {}

    # 6. The output projection.
    grads["out_proj.weight"] = np.tensordot(d_out, r.merged, ((0, 1), (0, 1)))
    if "out_proj.bias" in p:
        grads["out_proj.bias"] = d_out.sum((0, 1))
    d_merged = _split_heads(d_out @ p["out_proj.weight"], num_heads)

    # 5. Attention.
    if d_weights is not None:
        d_weights = np.asarray(d_weights, np.float64)
        if d_weights.ndim == 3:
            d_weights = np.repeat(d_weights[:, None] / num_heads, num_heads, 1)
    *d_heads, d_scores = attention_backward(r.core, d_merged, d_weights)

    # 4. Heads.
    d_q, d_k, d_v = (_merge_heads(x) for x in d_heads)

    # 3. Extra keys.
    if "bias_k" in p:
        grads["bias_k"], grads["bias_v"] = (x[:, s].sum(0).reshape(1, 1, -1) for x in (d_k, d_v))
    d_k, d_v, d_scores = d_k[:, :s], d_v[:, :s], d_scores[..., :s]

    # 2. Projections.
    weights, _ = _projections(p)
    d_projected = (d_q, d_k, d_v)
    for name, d, w in zip(("query", "key", "value"), d_projected, weights, strict=True):
        grads[name] = d @ w
    d_w = [np.tensordot(d, x, ((0, 1), (0, 1))) for d, x in zip(d_projected, r.inputs, strict=True)]
    if "in_proj_weight" in p:
        grads["in_proj_weight"] = np.concatenate(d_w)
    else:
        grads.update(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), d_w, strict=True))
    if "in_proj_bias" in p:
        grads["in_proj_bias"] = np.concatenate([d.sum((0, 1)) for d in d_projected])

    # 1. Masks.
    if r.attn_mask is not None and r.attn_mask.dtype != bool:
        grads["attn_mask"] = _sum_to(d_scores, r.attn_mask.shape)
    if r.key_padding_mask is not None and r.key_padding_mask.dtype != bool:
        grads["key_padding_mask"] = d_scores.sum((1, 2))
    return grads
