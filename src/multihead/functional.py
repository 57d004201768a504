"""Scaled dot-product attention and its backward, as functions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from multihead import _native
from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.arrays import (
    Array,
    Element,
    Kind,
    Shape,
    borrow,
    decode,
    dtype_name,
    element_of,
    read,
    restore,
)
from multihead.checks import boolean, dims, number, probability, wrong
from multihead.mask_warning import MaskWatch
from multihead.masks import Mask, fold, score_mask
from multihead.merging import merge_attention
from multihead.seeds import Seed, seed_from
from multihead.signatures import attention_backward, attention_call, typed_as
from multihead.suggestions import unknown

__all__ = [
    "AttentionCache",
    "merge_attention",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_backward",
]

_WATCH = MaskWatch(true_hides=False, left=64)
_LN2 = math.log(2.0)


class AttentionCache(NamedTuple):
    """What one call leaves for backward; it refers to the inputs and copies none.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.functional import scaled_dot_product_attention
    >>> q = np.ones((5, 4))
    >>> _, cache = scaled_dot_product_attention(q, q, q, return_cache=True)
    >>> cache
    AttentionCache(query=(5, 4), key=(5, 4), value=(5, 4))
    """

    element: Element
    inputs: tuple[Array, Array, Array]
    kinds: tuple[Kind, Kind, Kind]
    shapes: tuple[Shape, Shape, Shape]
    mask: Mask | None
    is_causal: bool
    scale: float
    dropout: tuple[float, int, int]
    out: Array
    stats: Array

    def __repr__(self) -> str:
        query, key, value = self.shapes
        return f"AttentionCache(query={query}, key={key}, value={value})"


@typed_as(attention_call)
def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    seed: Seed = None,
    return_lse: bool = False,
    return_cache: bool = False,
    **unknown_options: Any,
) -> Any:
    """Compute ``softmax(query keyᵀ · scale + mask) value`` for every batch entry and head.

    Names, order and mask polarity are those of ``torch.nn.functional``: a boolean mask says
    **True = attend there**, which is the opposite of the masks of `MultiheadAttention`.

    Parameters
    ----------
    query : array of shape (..., L, D)
        Usually (N, H, L, D). A NumPy array or any CPU array that speaks DLPack, of float32,
        float64, float16 or bfloat16, of any strides. float16 is computed in float32, and so is
        bfloat16 where the CPU cannot multiply it.
    key : array of shape (..., S, D)
        Of the dtype and leading axes of `query`; of float16 or bfloat16, too, under float32
        queries: a cache of half the size.
    value : array of shape (..., S, Dv)
        Likewise.
    attn_mask : array, bool or floating, optional
        Broadcastable to (..., L, S). **True = attend**; floats are added to the scaled scores.
    dropout_p : float, default 0.0
        Probability of dropping an attention weight, from 0 to 1. Acts in every call.
    is_causal : bool, default False
        Query i attends to keys j <= i only, besides what `attn_mask` says.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(D)`` by default.
    enable_gqa : bool, default False
        Not computed here: an error unless it is False.
    seed : int, numpy.random.Generator or numpy.random.SeedSequence, optional
        From 0 to 2**64 - 1, or where to take it from; dropout is a pure function of it and of
        positions. Drawn from the system when not given.
    return_lse : bool, default False
        Return the row statistic too.
    return_cache : bool, default False
        Return what `scaled_dot_product_attention_backward` needs too.

    Returns
    -------
    out : array of shape (..., L, Dv)
        Of the kind and dtype of `query`.
    lse : array of shape (..., L)
        With `return_lse`: the natural logarithm of the sum of the exponentials of a query's scores,
        before dropout; -inf where the query sees no key. In the dtype computed in, so float32 for
        float16 and bfloat16.
    cache : object
        With `return_cache`. It refers to the inputs and the mask, and can be used again.

    Raises
    ------
    ValueError
        If a shape does not fit, an array is not in CPU memory or a number is out of range.
    TypeError
        If an argument is no array, dtypes differ or a flag is no bool.
    NotImplementedError
        With `enable_gqa`.

    Warns
    -----
    MaskWarning
        If a mask, one of the first 64, seems to be one of the opposite meaning.

    Notes
    -----
    A query that sees no key has output 0 and gradients 0. No L x S array is made. Vaswani et al.,
    "Attention Is All You Need" (2017); Dao et al., "FlashAttention" (2022).

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.functional import scaled_dot_product_attention
    >>> q = np.ones((1, 2, 5, 4), np.float32)
    >>> out, lse = scaled_dot_product_attention(q, q, q, is_causal=True, return_lse=True)
    >>> out.shape, lse.shape, round(float(lse[0, 0, 0]), 3)
    ((1, 2, 5, 4), (1, 2, 5), 2.0)
    """
    # 1. Arguments: types, shapes and dtypes are checked.
    if unknown_options:
        raise unknown(scaled_dot_product_attention, unknown_options)
    is_causal, return_lse = boolean("is_causal", is_causal), boolean("return_lse", return_lse)
    return_cache = boolean("return_cache", return_cache)
    if boolean("enable_gqa", enable_gqa):
        way = "np.repeat(key, groups, axis=-3), and value likewise, does the same"
        raise NotImplementedError(f"enable_gqa: expected False, got True ({way})")
    element = _element(query)
    q, _, q_kind = read("query", query, element)
    k, k_kind = (q, q_kind) if key is query else _kept("key", key, element)
    v, v_kind = (k, k_kind) if value is key else _kept("value", value, element)
    shapes = (q.shape, k.shape, v.shape)
    _check_shapes(*shapes)
    scores = (*shapes[0][:-1], shapes[1][-2])
    mask = score_mask(attn_mask, scores, element.compute)
    if mask is not None and _WATCH.left:
        _WATCH.look({"attn_mask": mask.array}, scores[-2])
    width = shapes[0][-1]
    factor = (width**-0.5 if width else 1.0) if scale is None else number("scale", scale)
    dropout = (probability("dropout_p", dropout_p), 0, 0)
    if seed is not None or dropout[0]:
        dropout = (dropout[0], seed_from(seed), 0)

    # 2. Outputs.
    inputs = (_folded(q), _folded(k), _folded(v))
    # what a cache keeps is not rounded
    made = element.compute if return_cache else element.stored
    out = np.empty((*shapes[0][:-1], shapes[2][-1]), made)
    out_view = _folded(out)
    stats = None
    if return_lse or return_cache:
        stats = np.empty((2, *out_view.shape[:-1]), element.compute)

    # 3. The engine.
    options = AttentionOptions(element.name, is_causal, factor, *dropout)
    tensors = AttentionTensors(*inputs, mask and mask.array)
    _native.attention_forward(options, tensors, out_view, stats, None)

    # 4. Results as the caller's kind of array.
    results = [restore(out, q_kind)]
    if stats is not None:
        kinds = (q_kind, k_kind, v_kind)
        rest = (mask, is_causal, factor, dropout, out_view, stats)
        cache = AttentionCache(element, inputs, kinds, shapes, *rest)
        if return_lse:
            results.append(_shown(_lse(cache).reshape(shapes[0][:-1]), q_kind))
        if return_cache:  # the caller may change `out`
            results.append(cache if element.half else cache._replace(out=out_view.copy()))
    return results[0] if len(results) == 1 else tuple(results)


@typed_as(attention_backward)
def scaled_dot_product_attention_backward(
    d_out: Any, cache: Any, *, need_mask_grad: bool = False
) -> tuple[Any, ...]:
    """Return the gradients of the inputs of `scaled_dot_product_attention`.

    In the mask that the forward call was given **True = attend there**, the opposite of the masks
    of `MultiheadAttention`.

    Parameters
    ----------
    d_out : array of shape (..., L, Dv)
        Gradient of the output, of its dtype.
    cache : object
        From a call with ``return_cache=True``. It is only read.
    need_mask_grad : bool, default False
        Append the gradient of `attn_mask`.

    Returns
    -------
    d_query, d_key, d_value : array
        Shaped like the inputs, and of their kinds.
    d_attn_mask : array or None
        With `need_mask_grad`: in the shape and dtype of `attn_mask`, None where that was absent or
        boolean.

    Raises
    ------
    ValueError
        If the shape of `d_out` does not fit or `cache` is no cache.
    TypeError
        If `d_out` is no array, or of another dtype.

    Notes
    -----
    Scores are recomputed and dropout is drawn again; no L x S array is made but the gradient of a
    mask. Dao et al., "FlashAttention" (2022).

    Examples
    --------
    >>> import numpy as np
    >>> from multihead import functional
    >>> x = np.eye(3)[None, None]
    >>> out, cache = functional.scaled_dot_product_attention(x, x, x, return_cache=True)
    >>> *_, d_value = functional.scaled_dot_product_attention_backward(np.ones_like(out), cache)
    >>> d_value.sum().round(6)
    np.float64(9.0)
    """
    # 1. What comes in is checked.
    need_mask_grad = boolean("need_mask_grad", need_mask_grad)
    if not isinstance(cache, AttentionCache):
        raise wrong("cache", "one of a call with return_cache=True", type(cache).__name__)
    (q_shape, _, v_shape), compute = cache.shapes, cache.element.compute
    array, _, _ = read("d_out", d_out, cache.element, "")
    if array.shape != (*q_shape[:-1], v_shape[-1]):
        raise wrong("d_out", (*q_shape[:-1], v_shape[-1]), array.shape)
    d_out_view = _folded(array)

    # 2. Outputs.
    d_q, d_k, d_v = (np.empty(shape, cache.element.stored) for shape in cache.shapes)
    mask, d_mask = cache.mask, None
    if need_mask_grad and mask is not None and mask.gradient is not None:
        d_mask = np.empty(mask.gradient.engine_shape, compute)

    # 3. The engine.
    delta = np.empty(d_out_view.shape[:-1], compute)
    _native.delta(d_out_view, cache.out, delta)
    _native.attention_backward(
        AttentionOptions(cache.element.name, cache.is_causal, cache.scale, *cache.dropout),
        AttentionTensors(*cache.inputs, mask and mask.array),
        cache.stats,
        delta,
        d_out_view,
        AttentionTensors(_folded(d_q), _folded(d_k), _folded(d_v), d_mask),
    )

    # 4. Results as the caller's kinds of arrays.
    pairs = zip((d_q, d_k, d_v), cache.kinds, strict=True)
    results = tuple(restore(gradient, kind) for gradient, kind in pairs)
    if not need_mask_grad:
        return results
    if d_mask is None or mask is None or mask.gradient is None:
        return (*results, None)
    return (*results, mask.gradient.finish(d_mask))


def _element(query: Any) -> Element:
    if type(query) is np.ndarray and query.dtype.kind == "f":
        return element_of(query.dtype, "query")
    array, kind = borrow("query", query)
    return element_of(dtype_name(array, kind), "query")


def _kept(name: str, x: Any, element: Element) -> tuple[Array, Kind]:
    """Take in keys or values: half precision, too, where queries are float32."""
    if element.name == "float32" and not (type(x) is np.ndarray and x.dtype == element.compute):
        found = dtype_name(*borrow(name, x))
        element = element_of(found) if found in ("float16", "bfloat16") else element
    array, _, kind = read(name, x, element, "")
    return array, kind


def _check_shapes(query: Shape, key: Shape, value: Shape) -> None:
    if len(query) < 2:
        raise wrong("query", dims("...", "L", "D"), query)
    if len(key) != len(query) or key[:-2] != query[:-2] or key[-1] != query[-1]:
        raise wrong("key", dims(*query[:-2], "S", query[-1]), key)
    if len(value) != len(query) or value[:-1] != key[:-1]:
        raise wrong("value", dims(*key[:-1], "Dv"), value)


def _folded(array: Array) -> Array:
    return array if array.ndim == 4 else array.reshape(fold(array.shape))


def _lse(cache: AttentionCache) -> Array:
    """Natural logarithm from the engine's row maximum in log2 units and inverse sum.

    The engine squeezes masks that are finite, but not in log2 units: such rows are computed here.
    """
    top, inverse = cache.stats
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = top * _LN2 - np.log(inverse)
    lse = np.where(inverse == 0, -np.inf, lse).astype(top.dtype, copy=False)
    squeezed = (np.abs(top) > np.finfo(top.dtype).max / 2) & (inverse != 0)
    for n, h in np.argwhere(squeezed.any(-1)) if squeezed.any() else ():
        rows = np.flatnonzero(squeezed[n, h])
        lse[n, h, rows] = _lse_of_rows(cache, n, h, rows)
    return lse


def _lse_of_rows(cache: AttentionCache, n: int, h: int, rows: Array) -> Array:
    """Compute the statistic of some queries of a head from all of their scores, in float64."""
    compute = cache.element.compute
    q, k, _ = (decode(x, compute, x.dtype == np.uint16) for x in cache.inputs)
    with np.errstate(all="ignore"):
        scores = q[n, h, rows].astype(np.float64) @ k[n, h].T.astype(np.float64) * cache.scale
        hidden = np.zeros(scores.shape, bool)
        if cache.is_causal:
            hidden = np.arange(scores.shape[1]) > rows[:, None]
        if cache.mask is not None:
            of_scores = (*q.shape[:3], k.shape[2])
            mask = np.broadcast_to(cache.mask.array, of_scores)[n, h, rows]
            is_bool = mask.dtype == np.bool_
            hidden |= ~mask if is_bool else mask == -np.inf
            scores += 0 if is_bool else mask
        scores[hidden] = -np.inf
        top = scores.max(-1)
        lse: Array = top + np.log(np.exp(scores - top[:, None]).sum(-1))
    limit = float(np.finfo(cache.stats.dtype).max)
    finite = np.isfinite(lse)
    lse[finite] = lse[finite].clip(-limit, limit)
    return lse


def _shown(lse: Array, kind: Kind) -> Any:
    return lse if kind.from_dlpack is None else kind.from_dlpack(lse)
