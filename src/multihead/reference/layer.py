"""The layer: six numbered passes forward, and the same passes in reverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from multihead.reference.core import Array, AttentionResult, attention, attention_backward
from multihead.reference.dropout import BIAS_KEY, ZERO_KEY


@dataclass(frozen=True)
class Options:
    """What a call of the layer says besides its arrays.

    Attributes
    ----------
    num_heads : int
    num_kv_heads : int, optional
        Heads of keys and values; `num_heads` by default.
    is_causal : bool
        Query i sees keys j <= i, besides what the masks say.
    add_zero_attn : bool
        Append a zero key with a zero value.
    window, softcap, alibi_slopes, query_positions
        As in `Rules`.
    angles : tuple of two array_like (positions, pairs), optional
        Cosines and sines by which queries and keys are turned at their positions.
    interleaved : bool
        Features 2 i and 2 i + 1 are turned together, not i and i + pairs.
    dropout, seed, counter
        As in `dropout_mask`.

    Examples
    --------
    >>> Options(num_heads=4).dropout
    0.0
    """

    num_heads: int
    num_kv_heads: int | None = None
    is_causal: bool = False
    add_zero_attn: bool = False
    window: tuple[int | None, int | None] = (None, None)
    softcap: float | None = None
    alibi_slopes: ArrayLike | None = None
    query_positions: ArrayLike | None = None
    angles: tuple[ArrayLike, ArrayLike] | None = None
    interleaved: bool = False
    dropout: float = 0.0
    seed: int = 0
    counter: int = 0


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
    merged : ndarray (N, L, H * D)
        The heads side by side, before the output projection.
    places : tuple of ndarray
        The positions of queries and keys, (N, L) and (1, S).
    """

    out: Array
    weights: Array
    inputs: tuple[Array, Array, Array]
    merged: Array
    core: AttentionResult
    params: dict[str, Array]
    attn_mask: NDArray[Any] | None
    key_padding_mask: NDArray[Any] | None
    options: Options
    places: tuple[NDArray[np.int64], NDArray[np.int64]]


def _additive(mask: NDArray[Any]) -> Array:
    """Turn a mask into numbers to add to the scores: -inf where a boolean one is True."""
    return np.where(mask, -np.inf, 0.0) if mask.dtype == bool else mask.astype(np.float64)


def _projections(params: Mapping[str, Array]) -> tuple[list[Array], list[Array | float]]:
    """Weights (H * D, E), (Hk * D, kdim), (Hk * D, vdim) of q, k and v, and their biases."""
    if "in_proj_weight" in params:
        weights = np.split(params["in_proj_weight"], 3)
    else:
        weights = [params[f"{x}_proj_weight"] for x in "qkv"]
    biases: list[Array | float] = [0.0] * 3
    if "in_proj_bias" in params:
        ends = np.cumsum([len(w) for w in weights])[:2]
        biases = [*np.split(params["in_proj_bias"], ends)]
    return weights, biases


def _split_heads(x: Array, num_heads: int) -> Array:
    n, length, e = x.shape
    heads: Array = x.reshape(n, length, num_heads, e // num_heads).swapaxes(1, 2)
    return heads


def _merge_heads(x: Array) -> Array:
    n, h, length, d = x.shape
    merged: Array = x.swapaxes(1, 2).reshape(n, length, h * d)
    return merged


def _turned(x: Array, places: NDArray[np.int64], o: Options, *, back: bool = False) -> Array:
    """Turn pairs of features of x (N, H, L, D) by the angles of their positions, or back."""
    if o.angles is None:
        return x
    c, s = (np.asarray(t, np.float64)[places][:, None] for t in o.angles)  # (N, 1, L, pairs)
    s = -s if back else s
    pairs = c.shape[-1]
    first = slice(0, 2 * pairs, 2) if o.interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if o.interleaved else slice(pairs, 2 * pairs)
    turned: Array = x.copy()
    turned[..., first] = x[..., first] * c - x[..., second] * s
    turned[..., second] = x[..., second] * c + x[..., first] * s
    return turned


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
    key_padding_mask: ArrayLike | None = None,
    attn_mask: ArrayLike | None = None,
    **options: Any,
) -> Result:
    """Run the layer, batch first, in float64.

    Parameters
    ----------
    params : mapping
        Under the names of the state dict: in_proj_weight (3E, E) or q_proj_weight (H * D, E),
        k_proj_weight, v_proj_weight (Hk * D, kdim or vdim); in_proj_bias (H * D + 2 * Hk * D,),
        bias_k and bias_v (1, 1, Hk * D), sinks (H,), out_proj.bias (E,) where the layer has them;
        out_proj.weight (E, H * D).
    query, key, value : array_like (N, L, E), (N, S, kdim), (N, S, vdim)
    key_padding_mask : array_like (N, S), optional
        Boolean: True = ignore the key. Float: added to the scores. A hidden key is never read.
    attn_mask : array_like, optional
        Broadcastable to (N, H, L, S). Boolean: True = ignore. Float: added to the scores.
    **options
        The fields of `Options`; `num_heads` must be given.

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
    o = Options(**options)
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    (n, length, _), s = query.shape, key.shape[1]

    # 1. One mask for everything; what key_padding_mask hides is never read.
    mask = np.zeros((n, o.num_heads, length, s))
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
    # Causality, windows and the like are attention's own business: see `Rules`.

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
    if o.add_zero_attn:
        k, v = (np.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (k, v))
        positions.append(ZERO_KEY)
    mask = np.pad(mask, ((0, 0), (0, 0), (0, 0), (0, len(positions) - s)))

    # 4. Heads, queries and keys turned by their positions; the extra keys have none.
    key_heads = o.num_kv_heads or o.num_heads
    heads = ((q, o.num_heads), (k, key_heads), (v, key_heads))
    q, k, v = (_split_heads(x, count) for x, count in heads)
    first = np.zeros(n, int) if o.query_positions is None else np.asarray(o.query_positions)
    places = first[:, None] + np.arange(length), np.arange(s)[None]
    q = _turned(q, places[0], o)
    k = np.concatenate([_turned(k[:, :, :s], places[1], o), k[:, :, s:]], 2)

    # 5. Attention.
    core = attention(
        q,
        k,
        v,
        mask,
        is_causal=o.is_causal,
        window=o.window,
        query_positions=first,
        softcap=o.softcap,
        alibi_slopes=o.alibi_slopes,
        sinks=p.get("sinks"),
        dropout=o.dropout,
        seed=o.seed,
        counter=o.counter,
        keys=np.array(positions, np.uint64),
        placed=s,
    )

    # 6. Heads side by side, and the output projection.
    merged = _merge_heads(core.out)
    out = merged @ p["out_proj.weight"].T + p.get("out_proj.bias", 0.0)
    masks = attn_mask, key_padding_mask
    return Result(out, core.weights, (query, key, value), merged, core, p, *masks, o, places)


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
    *d_heads, d_scores, d_sinks = attention_backward(r.core, d_merged, d_weights)
    if "sinks" in p:
        grads["sinks"] = d_sinks

    # 4. Heads, turned back.
    d_q, d_k, d_v = d_heads
    d_q = _turned(d_q, r.places[0], r.options, back=True)
    d_k = np.concatenate(
        [_turned(d_k[:, :, :s], r.places[1], r.options, back=True), d_k[:, :, s:]], 2
    )
    d_q, d_k, d_v = (_merge_heads(x) for x in (d_q, d_k, d_v))

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
