"""`torch.nn.functional.scaled_dot_product_attention` on the engine."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import register_flop_formula

from multihead import _native
from multihead.torch.composed import composed_attention, derivatives
from multihead.torch.tensors import (
    COMPUTED,
    HALF,
    NARROW,
    batched,
    draw_seed,
    engine_reads,
    kept_masks,
    readable,
    settled,
    traced,
    transformed,
    unpacked,
)

_NO_OFFSETS = (0, 0, 0, 0)


class _How(NamedTuple):
    causal: bool
    scale: float
    probability: float
    seed: int | None


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute ``softmax(query keyᵀ · scale + mask) value`` for every batch entry and head.

    Signature, shapes and errors are those of `torch.nn.functional.scaled_dot_product_attention`;
    dropout, masks with gradients and values of another width stay on the engine, in memory that
    grows with the sequence. Tensors that are not in CPU memory, or of a dtype that the engine
    lacks, go to PyTorch's function unchanged.

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

    Returns
    -------
    Tensor
        (..., L, Dv), in memory in the order of query. A query that its masks hide every key from
        gets zeros.

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
    lead = _lead(inputs, attn_mask, dropout_p, enable_gqa)
    if lead is None:
        theirs: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return theirs
    dtype = query.dtype
    if torch.is_autocast_enabled("cpu") and dtype in NARROW:
        dtype = torch.get_autocast_dtype("cpu")
    width = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = tuple(x.to(width) for x in inputs)
    mask = attn_mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(width)
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        q, k, v, mask = _grouped(inputs, mask, lead)
    else:
        q, k, v = (_four_axes(x, lead) for x in inputs)
        mask = None if mask is None else _mask_axes(mask, lead)
    factor = 1 / math.sqrt(max(q.shape[3], 1)) if scale is None else float(scale)
    out = _attend((q, k, v), mask, _How(bool(is_causal), factor, float(dropout_p), None))
    return out.reshape(*lead, *out.shape[2:]).to(dtype)


def _lead(
    inputs: tuple[torch.Tensor, ...], mask: Any, probability: float, grouped: bool
) -> tuple[int, ...] | None:
    """Return the axes before the last two; None if the engine does not compute this call."""
    query, key, value = inputs
    dtype = query.dtype
    accepted: tuple[torch.dtype, ...] = (dtype,)
    if torch.is_autocast_enabled("cpu") and dtype in NARROW:
        accepted = NARROW
    elif dtype not in COMPUTED and dtype not in HALF:
        return None
    for x in inputs:
        if x.is_nested or x.dim() < 2 or x.dtype not in accepted or not readable(x):
            return None
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    if not 0 <= probability <= 1:
        return None
    leads = [x.shape[:-2] for x in inputs]
    if grouped:
        if min(map(len, leads)) < 1 or leads[1][-1] != leads[2][-1] or leads[1][-1] == 0:
            return None
        if leads[0][-1] % leads[1][-1]:
            return None
        leads[1:] = [(*lead[:-1], leads[0][-1]) for lead in leads[1:]]
    lead = _broadcast(leads)
    if lead is None or mask is None:
        return lead
    if dtype in HALF:
        accepted = (*accepted, torch.float32)
    if (mask.dtype != torch.bool and mask.dtype not in accepted) or not readable(mask):
        return None
    scores = (*lead, query.shape[-2], key.shape[-2])
    fits = mask.dim() >= 2 and _broadcast([mask.shape, scores]) == scores
    return lead if fits else None


def _broadcast(shapes: Any) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        return None


def _grouped(inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None, lead: Any) -> Any:
    """View each head of key and value as an entry of the batch, its queries as the heads.

    Where each sequence has a mask of its own, that would have to be repeated for the heads of key
    and value; these are repeated then.
    """
    q, k, v = inputs
    groups = lead[-1] // k.shape[-3]
    if mask is not None and max(mask.shape[:-2], default=1) > 1:
        k, v = (x.repeat_interleave(groups, -3) for x in (k, v))
        return *(_four_axes(x, lead) for x in (q, k, v)), _mask_axes(mask, lead)
    q, k, v = (x.expand(*lead[:-1], *x.shape[-3:]) for x in (q, k, v))
    batch = math.prod(k.shape[:-2])
    q = q.reshape(batch, groups, *q.shape[-2:])
    k, v = (x.reshape(batch, 1, *x.shape[-2:]).expand(-1, groups, -1, -1) for x in (k, v))
    return q, k, v, None if mask is None else mask.reshape(1, 1, *mask.shape[-2:])


def _four_axes(x: torch.Tensor, lead: tuple[int, ...]) -> torch.Tensor:
    if x.dim() == 4 and x.shape[:2] == lead:
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
        outer = lead[:-1] if max(mask.shape[:-3]) > 1 else mask.shape[:-3]
        mask = mask.expand(*outer, *mask.shape[-3:]).flatten(0, -4)
    return mask


def _attend(inputs: Any, mask: torch.Tensor | None, how: _How) -> torch.Tensor:
    """Choose who computes: the engine at once, an operation that PyTorch traces, or PyTorch."""
    tensors = (*inputs, mask)
    if transformed():
        dropout = how.probability, None
        return composed_attention(inputs, mask, how.causal, how.scale, dropout)
    if traced():
        seed = draw_seed() if how.probability else None
        out: torch.Tensor = torch.ops.multihead.scaled_dot_product_attention(
            *tensors, seed, *how[:3]
        )[0]
        return out
    if how.probability:
        how = how._replace(seed=int(draw_seed()))
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        result: torch.Tensor = _Attention.apply(how, *tensors)
        return result
    return _forward(how, tensors, None)


def _expanded(tensors: Any) -> Any:
    """Return what the engine takes: the mask with every axis of the scores."""
    q, k, v, mask = tensors
    if mask is not None:
        mask = mask.expand(*q.shape[:3], k.shape[2])
    return engine_reads((q, k, v, mask))


def _new_out(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Make memory for (N, H, L, Dv), tokens before heads if they lie so in q."""
    n, heads, length, _ = q.shape
    if q.stride(1) < q.stride(2):
        return q.new_empty((n, length, heads, v.shape[3])).transpose(1, 2)
    return q.new_empty((n, heads, length, v.shape[3]))


def _new_stats(q: torch.Tensor) -> torch.Tensor:
    return q.new_empty((2, *q.shape[:3]))


def _forward(how: _How, tensors: Any, stats: torch.Tensor | None) -> torch.Tensor:
    out = _new_out(tensors[0], tensors[2])
    if out.numel() == 0:
        return out
    q, k, v, mask = _expanded(tensors)
    written, kept = engine_reads((out, stats))
    _native.attention_forward(
        q,
        k,
        v,
        mask,
        False,
        how.causal,
        how.scale,
        (how.probability, how.seed or 0, 0),
        _NO_OFFSETS,
        written,
        kept,
        None,
    )
    return out


def _backward(
    how: _How, tensors: Any, out: Any, stats: Any, d_out: torch.Tensor, needs_mask: bool
) -> list[torch.Tensor]:
    q, k, v, mask = tensors
    grads = [torch.empty_like(x) for x in (q, k, v)]
    d_mask = torch.empty_like(mask) if needs_mask else None
    if out.numel() == 0:
        return [x.zero_() for x in (*grads, d_mask) if x is not None]
    delta = q.new_empty(q.shape[:3])
    d_out, out, stats, delta = engine_reads((d_out, out, stats, delta))
    _native.delta(d_out, out, delta)
    q, k, v, mask = _expanded(tensors)
    d_q, d_k, d_v, own = engine_reads((*grads, d_mask))
    _native.attention_backward(
        q,
        k,
        v,
        mask,
        False,
        how.causal,
        how.scale,
        (how.probability, how.seed or 0, 0),
        _NO_OFFSETS,
        stats,
        delta,
        d_out,
        d_q,
        d_k,
        d_v,
        own,
    )
    return [*grads, *([] if d_mask is None else [d_mask])]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: _How, *tensors: torch.Tensor | None) -> torch.Tensor:
        q = tensors[0]
        assert q is not None
        stats = _new_stats(q)
        out = _forward(how, tensors, stats)
        ctx.how = how
        kept = [*kept_masks(tensors), out, stats]
        ctx.save_for_backward(*kept)
        ctx.shapes = [None if x is None else x.shape for x in kept]
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        *tensors, out, stats = unpacked(ctx.saved_tensors, ctx.shapes)
        needed = ctx.needs_input_grad[1:]
        how = ctx.how
        if torch.is_grad_enabled() or transformed() or batched(d_out):
            return None, *_derivatives(how, tensors, d_out, needed)
        if traced():
            seed = None if how.seed is None else torch.tensor(how.seed, device="cpu")
            grads = torch.ops.multihead.scaled_dot_product_attention_backward(
                d_out, out, stats, *tensors, seed, *how[:3], needed[3]
            )
        else:
            grads = _backward(how, tensors, out, stats, settled(d_out), needed[3])
        return None, *grads, *[None] * (4 - len(grads))


def _derivatives(how: _How, tensors: Any, d_out: torch.Tensor, needed: Any) -> list[Any]:
    def function(copies: Any) -> tuple[torch.Tensor]:
        return (composed_attention(copies[:3], copies[3], how.causal, how.scale, how[2:]),)

    return derivatives(function, tensors, (d_out,), needed)


# The same as operations that PyTorch's compiler, exporter and dispatch modes follow.

_NAME = "multihead::scaled_dot_product_attention"
_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? seed"
_REST = "bool is_causal, float scale, float dropout_p"
# out (N, H, L, Dv), statistics of the rows (2, N, H, L)
torch.library.define(_NAME, f"({_INPUTS}, {_REST}) -> (Tensor, Tensor)")
# gradients of query, key and value, and of the mask if that is needed
torch.library.define(
    f"{_NAME}_backward",
    f"(Tensor d_out, Tensor out, Tensor stats, {_INPUTS}, {_REST}, bool needs_mask) -> Tensor[]",
)


def _how(seed: Any, rest: Any) -> _How:
    causal, scale, probability = rest
    return _How(causal, scale, probability, None if seed is None else int(seed))


def _op_forward(q: Any, k: Any, v: Any, mask: Any, seed: Any, *rest: Any) -> Any:
    stats = _new_stats(q)
    return _forward(_how(seed, rest), (q, k, v, mask), stats), stats


def _fake_forward(q: Any, k: Any, v: Any, mask: Any, seed: Any, *rest: Any) -> Any:
    return _new_out(q, v), _new_stats(q)


def _op_backward(
    d_out: Any, out: Any, stats: Any, q: Any, k: Any, v: Any, mask: Any, seed: Any, *rest: Any
) -> Any:
    how = _how(seed, rest[:-1])
    return _backward(how, (q, k, v, mask), out, stats, settled(d_out), rest[-1])


def _fake_backward(
    d_out: Any, out: Any, stats: Any, q: Any, k: Any, v: Any, mask: Any, seed: Any, *rest: Any
) -> Any:
    return [torch.empty_like(x) for x in (q, k, v, *([mask] if rest[-1] else []))]


def _set_up(ctx: Any, inputs: Any, output: Any) -> None:
    tensors = inputs[:5] if torch.compiler.is_compiling() else kept_masks(inputs[:5])
    ctx.save_for_backward(*output, *tensors)
    ctx.rest = inputs[5:]
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, d_out: Any, _: Any) -> Any:
    needs_mask = bool(ctx.needs_input_grad[3])
    if torch.is_grad_enabled():  # to be differentiated once more
        _, _, *tensors, seed = ctx.saved_tensors
        how, needed = _how(seed, ctx.rest), ctx.needs_input_grad[:4]
        return *_derivatives(how, tensors, d_out, needed), *[None] * 4
    grads = torch.ops.multihead.scaled_dot_product_attention_backward(
        d_out, *ctx.saved_tensors, *ctx.rest, needs_mask
    )
    return *grads, *[None] * (8 - len(grads))


torch.library.impl(_NAME, "CPU", _op_forward)
torch.library.register_fake(_NAME, _fake_forward)
torch.library.impl(f"{_NAME}_backward", "CPU", _op_backward)
torch.library.register_fake(f"{_NAME}_backward", _fake_backward)
torch.library.register_autograd(_NAME, _gradients, setup_context=_set_up)


def _flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(2 * math.prod(q[:3]) * k[2] * (q[3] + v[3]))


def _backward_flops(
    d_out: Any, out: Any, stats: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any
) -> int:
    # two products for each of the forward's, and the scores again
    return 2 * _flops(q, k, v) + int(2 * math.prod(q[:3]) * k[2] * q[3])


_operations = torch.ops.multihead
register_flop_formula(_operations.scaled_dot_product_attention)(_flops)
register_flop_formula(_operations.scaled_dot_product_attention_backward)(_backward_flops)
