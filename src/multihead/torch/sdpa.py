"""Scaled dot-product attention on the engine, and as an autograd function."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import torch

from multihead import _native
from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.torch.calls import AttentionCall
from multihead.torch.composed import composed_statistic, derivatives
from multihead.torch.dispatch import traced, transformed
from multihead.torch.schema import flat_attention
from multihead.torch.tensors import (
    HALF,
    batched,
    dtype_of,
    engine_reads,
    kept_masks,
    settled,
    statistics_dtype,
    unpacked,
)


def new_out(call: AttentionCall) -> torch.Tensor:
    """Make memory for (N, H, L, Dv), tokens before heads if they lie so in query.

    Of packed sequences it is (total, H, Dv).
    """
    q, dtype = call.tensors.query, dtype_of(call)
    if q.dim() == 3:
        packed: torch.Tensor = q.new_empty((*q.shape[:2], call.tensors.value.shape[2]), dtype=dtype)
        return packed
    n, heads, length, _ = q.shape
    width = call.tensors.value.shape[3]
    _, of_heads, of_tokens, _ = q.stride()
    out: torch.Tensor
    if of_heads < of_tokens:  # not a view, which could not be changed in place
        strides = length * heads * width, width, heads * width, 1
        out = q.new_empty_strided((n, heads, length, width), strides, dtype=dtype)
    else:
        out = q.new_empty((n, heads, length, width), dtype=dtype)
    return out


def new_stats(call: AttentionCall) -> torch.Tensor:
    """Make memory for the statistics of the rows: (2, N, H, L), or (2, total, H)."""
    q = call.tensors.query
    stats: torch.Tensor = q.new_empty((2, *q.shape[:-1]), dtype=statistics_dtype(call))
    return stats


def forward(call: AttentionCall, stats: torch.Tensor | None = None) -> torch.Tensor:
    """Run the engine; the rows' statistics are written where there is memory for them."""
    out = new_out(call)
    if out.numel() == 0:
        return out
    written, kept = engine_reads((out, stats))
    _native.attention_forward(call.options, engine_reads(call.tensors), written, kept, None)
    return out


def backward(
    call: AttentionCall,
    kept: tuple[torch.Tensor, torch.Tensor],
    d_out: torch.Tensor,
    needed: AbstractSet[str],
    d_lse: torch.Tensor | None = None,
) -> AttentionTensors:
    """Return the gradients, of the mask and the sinks only if these are needed.

    Parameters
    ----------
    call : AttentionCall
        That of forward.
    kept : tuple of Tensor
        Its result and its rows' statistics.
    d_out : Tensor
    needed : set of str
    """
    tensors, _ = call
    mask, sinks = (getattr(tensors, x) if x in needed else None for x in ("mask", "sinks"))
    wanted = AttentionTensors(tensors.query, tensors.key, tensors.value, mask, sinks=sinks)
    grads = AttentionTensors(*[None if x is None else torch.empty_like(x) for x in wanted])
    out, stats = kept
    of_mask = grads.mask
    if of_mask is not None and of_mask.dtype in HALF:  # sums, rounded once
        grads = grads._replace(mask=of_mask.to(torch.float32))
    if out.numel() == 0:
        return AttentionTensors(*[None if x is None else x.zero_() for x in grads])
    if sinks is not None:
        grads = grads._replace(sinks=torch.empty_like(sinks, dtype=stats.dtype))
    delta = stats.new_empty(stats.shape[1:])
    read = engine_reads((d_out, out, stats, delta))
    _native.delta(read[0], read[1], read[3])
    if d_lse is not None:
        delta -= d_lse
    _native.attention_backward(
        call.options, engine_reads(tensors), read[2], read[3], read[0], engine_reads(grads)
    )
    if of_mask is not None and grads.mask is not None:
        grads = grads._replace(mask=grads.mask.to(of_mask.dtype))
    if sinks is not None and grads.sinks is not None:
        grads = grads._replace(sinks=grads.sinks.to(sinks.dtype))
    return grads


def attend(call: AttentionCall) -> torch.Tensor:
    """Compute attention at once, with gradients."""
    out: torch.Tensor = _Attention.apply(call.options, *call.tensors)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: AttentionOptions, *tensors: torch.Tensor | None) -> torch.Tensor:
        call = AttentionCall(AttentionTensors(*tensors), options)
        stats = new_stats(call)
        out = forward(call, stats)
        ctx.options = options
        kept = [*kept_masks(tensors), out, stats]
        ctx.save_for_backward(*kept)
        ctx.shapes = [None if x is None else x.shape for x in kept]
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> Any:
        *saved, out, stats = unpacked(ctx.saved_tensors, ctx.shapes)
        assert out is not None
        assert stats is not None
        call = AttentionCall(AttentionTensors(*saved), ctx.options)
        needed = needed_gradients(ctx.needs_input_grad[1:])
        if torch.is_grad_enabled() or transformed() or batched(d_out):
            return None, *attention_derivatives(call, d_out, needed)
        d_out = settled(d_out)
        if not traced():
            return None, *backward(call, (out, stats), d_out, needed)
        options = call.options
        if options.seed is not None:
            options = options._replace(seed=torch.tensor(options.seed, device="cpu"))
        call = call._replace(options=options)
        return None, *traced_gradients(call, (out, stats), d_out, needed)


def needed_gradients(flags: Any) -> frozenset[str]:
    """Name the tensors whose gradients are needed."""
    return frozenset(x for x, flag in zip(AttentionTensors._fields, flags, strict=True) if flag)


def traced_gradients(
    call: AttentionCall,
    kept: tuple[Any, Any],
    d_out: torch.Tensor,
    needed: AbstractSet[str],
    d_lse: torch.Tensor | None = None,
) -> AttentionTensors:
    """Return the gradients through the operation, as `backward` does."""
    d_q, d_k, d_v, *more = torch.ops.multihead.scaled_dot_product_attention_backward(
        d_out, *kept, d_lse, *flat_attention(call), "mask" in needed, "sinks" in needed
    )
    mask, sinks = (more.pop(0) if x in needed else None for x in ("mask", "sinks"))
    return AttentionTensors(d_q, d_k, d_v, mask, sinks=sinks)


def attention_derivatives(
    call: AttentionCall,
    d_out: torch.Tensor | None,
    needed: AbstractSet[str],
    d_lse: torch.Tensor | None = None,
) -> AttentionTensors:
    """Return the gradients with a graph of their own."""
    return derivatives(
        lambda copies: composed_statistic(call._replace(tensors=copies)),
        call.tensors,
        (d_out, d_lse),
        needed,
    )
