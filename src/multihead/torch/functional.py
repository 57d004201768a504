"""`torch.nn.functional.scaled_dot_product_attention` on the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.score_rules import Asked, Window
from multihead.torch.calls import AttentionCall
from multihead.torch.composed import composed_attention, composed_statistic
from multihead.torch.dispatch import Ways, compute, needs_grad
from multihead.torch.exported import exported_attention
from multihead.torch.rules import NOT_OURS, natural, with_rules
from multihead.torch.sdpa import attend, forward, new_stats
from multihead.torch.sdpa_ops import attention, attention_statistic
from multihead.torch.sizes import broadcast, broadcasts, is_one, same, same_shape
from multihead.torch.symbolic import as_leaf, is_symbolic
from multihead.torch.tensors import COMPUTED, HALF, NAMES, NARROW, readable

# at import: our function may take the place of PyTorch's
_theirs = torch.nn.functional.scaled_dot_product_attention
_MATH = int(torch.nn.attention.SDPBackend.MATH.value)
_LARGEST = 2**64  # of integers that are surely floats
_FIRST = 0  # of query_offset
_SCALES = (float, int, type(None), torch.SymFloat)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: int | str | Sequence[int] | torch.Tensor = 0,
    key_lengths: Sequence[int] | torch.Tensor | None = None,
    softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Compute ``softmax(query keyᵀ · scale + mask) value`` for every batch entry and head.

    The first parameters, shapes and errors are those of
    `torch.nn.functional.scaled_dot_product_attention`. Dropout, masks with gradients and values of
    another width stay on the engine, in memory that grows with the sequence. Under autocast tensors
    of float32, float16 and bfloat16 are read as they are, and have gradients of their dtypes.
    Tensors that are not in CPU memory, or of a dtype that the engine lacks, go to PyTorch's
    function unchanged, unless a keyword asks for what that has not.

    Parameters
    ----------
    query : Tensor
        (..., L, D), of float32, float64, or of float16 and bfloat16, computed in float32.
    key, value : Tensor
        (..., S, D) and (..., S, Dv).
    attn_mask : Tensor, optional
        Broadcastable to (..., L, S). **True = attend**, the opposite of `MultiheadAttention`;
        floats are added to the scores.
    dropout_p : float
        Probability of dropping a weight, in every call; one seed is drawn from PyTorch's
        generator.
    is_causal : bool
        Query i sees keys up to i, whatever else the mask says.
    scale : float, optional
        ``1 / sqrt(D)`` by default.
    enable_gqa : bool
        Whether there may be fewer heads of key and value, each for a group of query's.
    window : int or tuple of two (int or None), optional
        ``(left, right)``: the query at position p sees keys p - left <= j <= p + right only; None:
        without a limit on that side. An int is both.
    query_offset : int, "end", or int64 Tensor (N,)
        Query i stands at position query_offset + i among the keys, for `is_causal`, `window` and
        `alibi_slopes`. "end": the last query stands on the last key.
    key_lengths : int64 Tensor (N,), optional
        Keys of a sequence from there on do not exist, and are never read.
    softcap : float, optional
        Scaled scores s become ``softcap * tanh(s / softcap)``, before masks and ALiBi.
    alibi_slopes : Tensor (H,) or (N, H), optional
        Scores lose ``slope * |position of query - position of key|``. It has no gradient.
    sinks : Tensor (H,), optional
        A score of each head that joins the softmax and has no value.
    return_lse : bool
        Return the logarithm of the sum of the exponentials of each query's scores, too.

    Returns
    -------
    out : Tensor
        (..., L, Dv), in memory in the order of query. A query that its masks hide every key from
        gets zeros.
    lse : Tensor
        With `return_lse`: (..., L), of float32, or float64 where that is computed in; -inf where a
        query sees no key.

    Raises
    ------
    ValueError
        If a keyword that PyTorch's function lacks does not fit, or tensors that it comes with are
        not the engine's.

    Examples
    --------
    >>> import torch
    >>> from multihead.torch import scaled_dot_product_attention
    >>> q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    >>> ours = scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> torch.allclose(ours, theirs, atol=1e-6)
    True
    """
    inputs = (query, key, value)
    offset = None if query_offset is _FIRST else query_offset
    rules = Asked(window, offset, key_lengths, softcap, alibi_slopes, sinks)
    extended = bool(rules) or return_lse
    if is_symbolic(inputs):
        if extended:
            raise ValueError(NOT_OURS)
        rest: tuple[Any, ...] = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
        leaf: torch.Tensor = as_leaf(scaled_dot_product_attention, (*inputs, *rest))
        return leaf
    lead, alike = None, False
    plain = type(is_causal) is bool and type(enable_gqa) is bool
    if plain and isinstance(dropout_p, (int, float)) and isinstance(scale, _SCALES):
        tensors_alone = all(isinstance(x, torch.Tensor) for x in inputs)
        if tensors_alone and (attn_mask is None or isinstance(attn_mask, torch.Tensor)):
            alike = not enable_gqa and _alike(inputs)
            lead = _lead(inputs, attn_mask, dropout_p, enable_gqa, alike)
    if type(scale) is int and abs(scale) > _LARGEST:  # PyTorch says what it says of such numbers
        lead = None
    if lead is None and extended:
        raise ValueError(NOT_OURS)
    if lead is None:
        theirs: torch.Tensor = _theirs(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return theirs
    dtype, mask = query.dtype, attn_mask
    if torch.is_autocast_enabled("cpu") and dtype in NARROW:
        dtype = torch.get_autocast_dtype("cpu")
    q, k, v = inputs
    if not alike:
        of_keys = (*lead[:-1], key.shape[-3]) if enable_gqa else lead
        q, k, v = _four_axes(query, lead), _four_axes(key, of_keys), _four_axes(value, of_keys)
    mask = None if mask is None else _mask_axes(mask, lead)
    factor = 1 / math.sqrt(max(q.shape[3], 1)) if scale is None else float(scale)
    options = AttentionOptions(NAMES[dtype], is_causal, factor, float(dropout_p), None)
    tensors = AttentionTensors(q, k, v, mask)
    call = AttentionCall(tensors, options)
    if rules:
        call = with_rules(call, rules)
    if return_lse:
        out, lse = compute(call, WITH_STATISTIC)
        return out.reshape(*lead, *out.shape[2:]), lse.reshape(*lead, lse.shape[2])
    out = compute(call, WAYS)
    if needs_grad(tensors) and not torch.compiler.is_compiling():
        given = query, key, value, attn_mask, dropout_p, is_causal
        if torch._fused_sdp_choice(*given, scale=scale, enable_gqa=enable_gqa) == _MATH:
            out = out.clone()  # which PyTorch lets be changed in place before backward
    return out if alike else out.reshape(*lead, *out.shape[2:])


def _alike(inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether query, key and value have one shape of four axes, as nearly always."""
    if torch.compiler.is_compiling():  # where a comparison would hold for this run alone
        return False
    query, key, value = inputs
    return bool(query.dim() == 4 and query.shape == key.shape == value.shape)


def _lead(
    inputs: tuple[torch.Tensor, ...],
    mask: Any,
    probability: float,
    grouped: bool,
    alike: bool = False,
) -> tuple[int, ...] | None:
    """Return the axes before the last two; None if the engine does not compute this call."""
    query, key, value = inputs
    dtype = query.dtype
    accepted: tuple[torch.dtype, ...] = (dtype,)
    if torch.is_autocast_enabled("cpu") and dtype in NARROW:
        if torch.get_autocast_dtype("cpu") not in NARROW:
            return None
        accepted = NARROW
    elif dtype not in COMPUTED and dtype not in HALF:
        return None
    for x in inputs:
        if x.is_nested or x.dim() < 2 or x.dtype not in accepted or not readable(x):
            return None
    if not 0 <= probability <= 1:
        return None
    if alike:
        lead: tuple[int, ...] | None = query.shape[:2]
    elif same(query.shape[-1], key.shape[-1]) and same(key.shape[-2], value.shape[-2]):
        lead = _common([x.shape[:-2] for x in inputs], grouped)
    else:
        return None
    if lead is None or mask is None:
        return lead
    if dtype in HALF:
        accepted = (*accepted, torch.float32)
    if (mask.dtype != torch.bool and mask.dtype not in accepted) or not readable(mask):
        return None
    scores = (*lead, query.shape[-2], key.shape[-2])
    return lead if mask.dim() >= 2 and broadcasts(mask.shape, scores) else None


def _common(leads: list[Any], grouped: bool) -> tuple[int, ...] | None:
    """Return the shape that the axes before the last two broadcast to; None if there is none."""
    if grouped:
        if min(map(len, leads)) < 1 or not same(leads[1][-1], leads[2][-1]) or leads[1][-1] == 0:
            return None
        if leads[0][-1] % leads[1][-1]:
            return None
        leads[1:] = [(*lead[:-1], leads[0][-1]) for lead in leads[1:]]
    return broadcast(leads)


def _four_axes(x: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor:
    if x.dim() == 4 and same_shape(x.shape[:2], lead):
        return x
    x = x.expand(*lead, *x.shape[-2:])
    while x.dim() < 4:
        x = x.unsqueeze(-3)
    return x.flatten(0, -4) if x.dim() > 4 else x


def _mask_axes(mask: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor:
    """View a mask with four axes, of which those it is broadcast in stay 1."""
    mask = mask[(None,) * (len(lead) + 2 - mask.dim())]
    while mask.dim() < 4:
        mask = mask.unsqueeze(-3)
    if mask.dim() > 4:
        outer = mask.shape[:-3] if all(map(is_one, mask.shape[:-3])) else lead[:-1]
        mask = mask.expand(*outer, *mask.shape[-3:]).flatten(0, -4)
    return mask


def _forward_statistic(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    stats = new_stats(call)
    return forward(call, stats), natural(stats)


WITH_STATISTIC = Ways(
    engine=_forward_statistic,
    function=attention_statistic,
    operation=attention_statistic,
    composed=composed_statistic,
    exported=composed_statistic,
)
WAYS = Ways(
    engine=forward,
    function=attend,
    operation=attention,
    composed=composed_attention,
    exported=exported_attention,
)
