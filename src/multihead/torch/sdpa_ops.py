"""Scaled dot-product attention as operations that PyTorch's compiler and dispatch modes follow."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from multihead.arguments import AttentionTensors
from multihead.torch import sdpa
from multihead.torch.calls import AttentionCall
from multihead.torch.packed import pairs
from multihead.torch.rules import natural, of_natural
from multihead.torch.schema import ATTENTION_SCHEMA, attention_call, flat_attention
from multihead.torch.tensors import kept_masks, settled

_FORWARD = "multihead::scaled_dot_product_attention"
_BACKWARD = f"{_FORWARD}_backward"

# out (N, H, L, Dv), statistics of the rows (2, N, H, L); packed (total, H, Dv) and (2, total, H)
torch.library.define(_FORWARD, f"({ATTENTION_SCHEMA}) -> (Tensor, Tensor)")
# gradients of query, key and value, and of the mask and the sinks if these are needed
torch.library.define(
    _BACKWARD,
    f"(Tensor d_out, Tensor out, Tensor stats, Tensor? d_lse, {ATTENTION_SCHEMA}, "
    "bool needs_mask, bool needs_sinks) -> Tensor[]",
)


def attention(call: AttentionCall) -> torch.Tensor:
    """Call the operation; dropout's seed is a tensor."""
    out: torch.Tensor
    out, _ = torch.ops.multihead.scaled_dot_product_attention(*flat_attention(call))
    return out


def attention_statistic(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the operation; also the logarithms of the rows' sums."""
    out, stats = torch.ops.multihead.scaled_dot_product_attention(*flat_attention(call))
    return out, natural(stats)


def _seeded(call: AttentionCall) -> AttentionCall:
    seed = call.options.seed
    return call if seed is None else call._replace(options=call.options._replace(seed=int(seed)))


def _forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    call, _ = attention_call(arguments)
    stats = sdpa.new_stats(call)
    return sdpa.forward(_seeded(call), stats), stats


def _fake_forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    call, _ = attention_call(arguments)
    return sdpa.new_out(call), sdpa.new_stats(call)


def _backward(d_out: Any, out: Any, stats: Any, d_lse: Any, *arguments: Any) -> list[torch.Tensor]:
    call, flags = attention_call(arguments)
    needed = frozenset(x for x, flag in zip(("mask", "sinks"), flags, strict=True) if flag)
    grads = sdpa.backward(_seeded(call), (out, stats), settled(d_out), needed, d_lse)
    return [x for x in grads if x is not None]


def _fake_backward(
    d_out: Any, out: Any, stats: Any, d_lse: Any, *arguments: Any
) -> list[torch.Tensor]:
    (t, _), flags = attention_call(arguments)
    more = [x for x, flag in zip((t.mask, t.sinks), flags, strict=True) if flag]
    return [torch.empty_like(x) for x in (t.query, t.key, t.value, *more)]


def _set_up(ctx: Any, inputs: Any, output: Any) -> None:
    (tensors, options), _ = attention_call(inputs)
    if not torch.compiler.is_compiling():
        tensors = AttentionTensors(*kept_masks(tensors))
    out, stats = output
    ctx.save_for_backward(*tensors, options.seed, out, stats)
    ctx.options = options._replace(seed=None)
    ctx.others = len(inputs) - len(tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Any, d_stats: Any) -> Any:
    *saved, seed, out, stats = ctx.saved_tensors
    d_lse = of_natural(d_stats)
    if d_out is None:
        d_out = torch.zeros_like(out)
    call = AttentionCall(AttentionTensors(*saved), ctx.options._replace(seed=seed))
    needed = sdpa.needed_gradients(ctx.needs_input_grad[: len(saved)])
    if torch.is_grad_enabled():  # to be differentiated once more
        found = sdpa.attention_derivatives(_seeded(call), d_out, needed, d_lse)
    else:
        found = sdpa.traced_gradients(call, (out, stats), d_out, needed, d_lse)
    return *found, *[None] * ctx.others


def _flops(*arguments: Any, out_val: Any = None) -> int:
    (tensors, _), _ = attention_call(arguments)
    heads, width = tensors.query.shape[1], tensors.query.shape[-1]
    return int(2 * heads * pairs(tensors) * (width + tensors.value.shape[-1]))


def _backward_flops(
    d_out: Any, out: Any, stats: Any, d_lse: Any, *arguments: Any, out_val: Any = None
) -> int:
    # two products for each of the forward's, and the scores again
    (tensors, _), _ = attention_call(arguments)
    scores = int(2 * tensors.query.shape[1] * tensors.query.shape[-1] * pairs(tensors))
    return 2 * _flops(*arguments) + scores


torch.library.impl(_FORWARD, "CPU", _forward)
torch.library.register_fake(_FORWARD, _fake_forward)
torch.library.impl(_BACKWARD, "CPU", _backward)
torch.library.register_fake(_BACKWARD, _fake_backward)
torch.library.register_autograd(_FORWARD, _gradients, setup_context=_set_up)
_operations = torch.ops.multihead
register_flop_formula(_operations.scaled_dot_product_attention, get_raw=True)(_flops)
register_flop_formula(_operations.scaled_dot_product_attention_backward, get_raw=True)(
    _backward_flops
)
