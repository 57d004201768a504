"""Scaled dot-product attention and its backward, as functions."""

from __future__ import annotations

from typing import Any, NamedTuple

from multihead import _native
from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.arrays import Array, Element, Kind, Shape, read, restore
from multihead.attention_inputs import check_shapes, element_given, keys_given, rows_given
from multihead.checks import boolean, number, probability, wrong
from multihead.layer_rules import alibi_slopes
from multihead.mask_warning import MaskWatch
from multihead.masks import Mask, fold, of_heads, score_mask
from multihead.memory import new_array, new_gradients
from multihead.merging import merge_attention
from multihead.packed import Packing, pack, unpack, unpack_like
from multihead.ragged import Ragged
from multihead.rotation import rotate, rotate_backward
from multihead.row_statistics import log_sums
from multihead.score_rules import NO_RULES, Asked, ScoreRules, Window, score_rules
from multihead.seeds import Seed, seed_from
from multihead.signatures import attention_backward, attention_call, typed_as
from multihead.suggestions import shown_without_unknown, unknown

__all__ = [
    "AttentionCache",
    "alibi_slopes",
    "merge_attention",
    "rotate",
    "rotate_backward",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_backward",
]

_NAMES = ("query", "key", "value")
_VALUES = ("query.values", "key.values", "value.values")
_WATCH = MaskWatch(true_hides=False, left=64)
_FIRST = 0  # of query_offset


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
    options: AttentionOptions
    rules: ScoreRules
    out: Array
    stats: Array
    packing: Packing | None = None

    def __repr__(self) -> str:
        query, key, value = self.shapes
        return f"AttentionCache(query={query}, key={key}, value={value})"


@typed_as(attention_call)
@shown_without_unknown
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
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
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
    query : array of shape (..., L, D), or Ragged
        Usually (N, H, L, D). A NumPy array or any CPU array that speaks DLPack, of float32,
        float64, float16 or bfloat16, of any strides. float16 is computed in float32, and so is
        bfloat16 where the CPU cannot multiply it. Or packed sequences: a `Ragged` of values
        (total, H, D), as key and value then are too, of values (total, Hk, D) and (total, Hk, Dv).
    key : array of shape (..., S, D)
        Of the dtype and leading axes of `query`; of float16 or bfloat16, too, under float32
        queries: a cache of half the size. With `enable_gqa` of fewer heads, (..., Hk, S, D).
    value : array of shape (..., S, Dv)
        Likewise.
    attn_mask : array, bool or floating, optional
        Broadcastable to (..., L, S). **True = attend**; floats are added to the scaled scores.
        Keys after the last column are hidden. For packed sequences L and S of (N, H, L, S) are the
        greatest lengths, and the mask is cut top-left for each sequence.
    dropout_p : float, default 0.0
        Probability of dropping an attention weight, from 0 to 1. Acts in every call.
    is_causal : bool, default False
        The query at position p attends to keys j <= p only, besides what `attn_mask` says.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(D)`` by default.
    enable_gqa : bool, default False
        Let each head of keys and values serve H / Hk heads of queries side by side; without it,
        another number of heads is an error.
    window : int or tuple of two (int or None), optional
        ``(left, right)``: the query at position p attends to keys p - left <= j <= p + right only;
        None: without a limit on that side. An int is both.
    query_offset : int, array of int (N,) or "end", default 0
        Query i stands at position query_offset + i among the keys, for `is_causal`, `window` and
        `alibi_slopes`. "end": the last query stands on the last key.
    key_lengths : array of int (N,), optional
        Keys of a sequence from there on do not exist, and are never read; packed ones too.
    softcap : float, optional
        Scaled scores s become ``softcap * tanh(s / softcap)``, before masks and ALiBi.
    alibi_slopes : array of shape (H,) or (N, H), optional
        Scores lose ``slope * |position of query - position of key|``.
    sinks : array of shape (H,), optional
        A score of each head that joins the softmax and has no value, so that the weights of a query
        that sees keys sum to less than 1.
    seed : int, numpy.random.Generator or numpy.random.SeedSequence, optional
        From 0 to 2**64 - 1, or where to take it from; dropout is a pure function of it and of
        positions. Drawn from the system when not given.
    return_lse : bool, default False
        Return the row statistic too.
    return_cache : bool, default False
        Return what `scaled_dot_product_attention_backward` needs too.

    Returns
    -------
    out : array of shape (..., L, Dv), or Ragged
        Of the kind and dtype of `query`; for packed sequences of values (total, H, Dv).
    lse : array of shape (..., L), or Ragged
        With `return_lse`: the natural logarithm of the sum of the exponentials of a query's scores
        and its sink, before dropout; -inf where the query sees no key. In the dtype computed in, so
        float32 for float16 and bfloat16. For packed sequences of values (total, H).
    cache : object
        With `return_cache`. It refers to the inputs and the mask, and can be used again.

    Raises
    ------
    ValueError
        If a shape does not fit, an array is not in CPU memory or a number is out of range.
    TypeError
        If an argument is no array, dtypes differ or a flag is no bool.

    Warns
    -----
    MaskWarning
        If a mask, one of the first 64, seems to be one of the opposite meaning.

    Notes
    -----
    A query that sees no key has output 0 and gradients 0. No L x S array is made, and tiles that no
    query sees are not computed. Rules act in this order: scale, `softcap`, `alibi_slopes`,
    `attn_mask`, softmax with `sinks`, dropout. N is the product of the axes before the heads.
    Packed sequences have the bits that each has by itself, but for dropout, which draws by their
    place in the batch.
    Vaswani et al., "Attention Is All You Need" (2017); Dao et al., "FlashAttention" (2022); Ainslie
    et al., "GQA" (2023); Press et al., "Train Short, Test Long" (2022); Xiao et al., "Efficient
    Streaming Language Models with Attention Sinks" (2023).

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

    Packed sequences, of 3 and 5 tokens with 2 heads:

    >>> from multihead import Ragged
    >>> x = Ragged(np.ones((8, 2, 4), np.float32), [0, 3, 8])
    >>> scaled_dot_product_attention(x, x, x, is_causal=True)
    Ragged(N=2, total=8, H=2, D=4, lengths=3 to 5)
    """
    # 1. Arguments: types, shapes and dtypes are checked.
    if unknown_options:
        raise unknown(scaled_dot_product_attention, unknown_options)
    is_causal, return_lse = boolean("is_causal", is_causal), boolean("return_lse", return_lse)
    return_cache = boolean("return_cache", return_cache)
    enable_gqa = boolean("enable_gqa", enable_gqa)
    packing, names = None, _NAMES
    if isinstance(query, Ragged) or isinstance(key, Ragged) or isinstance(value, Ragged):
        packing, (query, key, value) = unpack(query, key, value)
        names = _VALUES
    element = element_given(names[0], query)
    q, _, q_kind = read(names[0], query, element, "")
    k, k_kind = (q, q_kind) if key is query else keys_given(names[1], key, element)
    v, v_kind = (k, k_kind) if value is key else keys_given(names[2], value, element)
    shapes = (q.shape, k.shape, v.shape)
    scores: Shape
    if packing is None:
        check_shapes(*shapes, enable_gqa)
        scores = (*shapes[0][:-1], shapes[1][-2])
    else:
        scores = packing.scores(*shapes, enable_gqa)
    offset = None if query_offset is _FIRST else query_offset
    asked = Asked(window, offset, key_lengths, softcap, alibi_slopes, sinks)
    rules, folded = NO_RULES, of_heads if enable_gqa or asked else fold
    if asked:
        sizes = None if packing is None else packing.lengths
        rules = score_rules(of_heads(scores), element.compute, asked, sizes)
    mask = score_mask(attn_mask, scores, element.compute, folded)
    if mask is not None and _WATCH.left:
        _WATCH.look({"attn_mask": mask.array}, scores[-2])
    width = shapes[0][-1]
    factor = (width**-0.5 if width else 1.0) if scale is None else number("scale", scale)
    dropout = (probability("dropout_p", dropout_p), 0, 0)
    if seed is not None or dropout[0]:
        dropout = (dropout[0], seed_from(seed), 0)

    # 2. Outputs.
    if packing is None:
        q, k, v = (x if x.ndim == 4 else x.reshape(folded(x.shape)) for x in (q, k, v))
    inputs = (q, k, v)
    # what a cache keeps is not rounded
    made = element.compute if return_cache else element.stored
    out = new_array("out", (*shapes[0][:-1], shapes[2][-1]), made)
    whole = out.ndim == 4 or packing is not None
    out_view = out if whole else out.reshape(folded(out.shape))
    stats = None
    if return_lse or return_cache:
        stats = new_array("lse", (2, *out_view.shape[:-1]), element.compute)

    # 3. The engine.
    options = AttentionOptions(element.name, is_causal, factor, *dropout)
    if rules is not NO_RULES:
        left, right = rules.window
        options = options._replace(softcap=rules.softcap, window_left=left, window_right=right)
    tensors = _tensors(inputs, mask, rules, packing)
    _native.attention_forward(options, tensors, out_view, stats, None)

    # 4. Results as the caller's kind of array.
    of_queries = None if packing is None else packing.query
    results = [pack(restore(out, q_kind), of_queries)]
    if stats is not None:
        kinds = (q_kind, k_kind, v_kind)
        rest = (mask, options, rules, out_view, stats, packing)
        cache = AttentionCache(element, inputs, kinds, shapes, *rest)
        if return_lse:
            lse = log_sums(tensors, options, stats)
            results.append(pack(_shown(lse.reshape(shapes[0][:-1]), q_kind), of_queries))
        if return_cache:  # the caller may change `out`
            results.append(cache if element.half else cache._replace(out=out_view.copy()))
    return results[0] if len(results) == 1 else tuple(results)


@typed_as(attention_backward)
def scaled_dot_product_attention_backward(
    d_out: Any,
    cache: Any,
    *,
    need_mask_grad: bool = False,
    need_sink_grad: bool = False,
    d_lse: Any = None,
) -> tuple[Any, ...]:
    """Return the gradients of the inputs of `scaled_dot_product_attention`.

    In the mask that the forward call was given **True = attend there**, the opposite of the masks
    of `MultiheadAttention`.

    Parameters
    ----------
    d_out : array of shape (..., L, Dv), or Ragged
        Gradient of the output, of its dtype; of packed sequences a `Ragged` of its offsets.
    cache : object
        From a call with ``return_cache=True``. It is only read.
    need_mask_grad : bool, default False
        Append the gradient of `attn_mask`.
    need_sink_grad : bool, default False
        Append the gradient of `sinks`.
    d_lse : array of shape (..., L), or Ragged, optional
        Gradient of `lse`, of a floating dtype.

    Returns
    -------
    d_query, d_key, d_value : array or Ragged
        Shaped like the inputs, and of their kinds. Those of key and value are summed over the heads
        of queries that share them; of keys that do not exist they are 0.
    d_attn_mask : array or None
        With `need_mask_grad`: in the shape and dtype of `attn_mask`, None where that was absent or
        boolean.
    d_sinks : array or None
        With `need_sink_grad`: likewise of `sinks`.

    Raises
    ------
    ValueError
        If the shape of `d_out` or `d_lse` does not fit or `cache` is no cache.
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
    need_sink_grad = boolean("need_sink_grad", need_sink_grad)
    if not isinstance(cache, AttentionCache):
        raise wrong("cache", "one of a call with return_cache=True", type(cache).__name__)
    q_shape, _, v_shape = cache.shapes
    of_queries, of_keys = cache.packing or (None, None)
    d_out = unpack_like("d_out", d_out, of_queries)
    if d_lse is not None:
        d_lse = unpack_like("d_lse", d_lse, of_queries)
    array, _, _ = read("d_out", d_out, cache.element, "")
    if array.shape != (*q_shape[:-1], v_shape[-1]):
        raise wrong("d_out", (*q_shape[:-1], v_shape[-1]), array.shape)
    lead, compute = cache.out.shape[:-1], cache.element.compute
    d_out_view = array.reshape(cache.out.shape)
    d_rows = None if d_lse is None else rows_given("d_lse", d_lse, q_shape[:-1], compute)

    # 2. Outputs.
    d_q, d_k, d_v = new_gradients(cache.shapes, cache.element)
    mask, d_mask = cache.mask, None
    if need_mask_grad and mask is not None and mask.gradient is not None:
        d_mask = new_array("d_attn_mask", mask.gradient.engine_shape, compute)
    sinks, d_sinks = cache.rules.sinks, None
    if need_sink_grad and sinks is not None:
        d_sinks = new_array("d_sinks", sinks.shape, compute)

    # 3. The engine.
    delta = new_array("delta", lead, compute)
    _native.delta(d_out_view, cache.out, delta)
    if d_rows is not None:
        delta -= d_rows.reshape(lead)
    of_q, of_k, of_v = (
        x.reshape(like.shape) for x, like in zip((d_q, d_k, d_v), cache.inputs, strict=True)
    )
    _native.attention_backward(
        cache.options,
        _tensors(cache.inputs, mask, cache.rules, cache.packing),
        cache.stats,
        delta,
        d_out_view,
        AttentionTensors(of_q, of_k, of_v, mask=d_mask, sinks=d_sinks),
    )

    # 4. Results as the caller's kinds of arrays.
    parts = zip((d_q, d_k, d_v), cache.kinds, (of_queries, of_keys, of_keys), strict=True)
    results: tuple[Any, ...] = tuple(pack(restore(d, kind), steps) for d, kind, steps in parts)
    if need_mask_grad:
        of_mask = None
        if d_mask is not None and mask is not None and mask.gradient is not None:
            of_mask = mask.gradient.finish(d_mask)
        results += (of_mask,)
    if need_sink_grad:
        kind = cache.rules.sinks_kind
        results += (None if d_sinks is None or kind is None else restore(d_sinks, kind),)
    return results


def _tensors(
    inputs: tuple[Array, Array, Array],
    mask: Mask | None,
    rules: ScoreRules,
    packing: Packing | None,
) -> AttentionTensors:
    tensors = AttentionTensors(*inputs, mask and mask.array, rules.alibi_slopes, rules.sinks)
    query_offsets, key_offsets = packing or (None, None)
    return tensors._replace(
        query_offsets=query_offsets,
        key_offsets=key_offsets,
        query_positions=rules.query_positions,
        key_lengths=rules.key_lengths,
    )


def _shown(lse: Array, kind: Kind) -> Any:
    return lse if kind.from_dlpack is None else kind.from_dlpack(lse)
