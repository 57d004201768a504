"""The layer as operations that PyTorch's compiler, exporter and dispatch modes follow."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from multihead.arguments import LayerTensors
from multihead.torch import engine
from multihead.torch.calls import LayerCall, Offsets
from multihead.torch.dispatch import needs_grad
from multihead.torch.function import (
    layer_derivatives,
    needed_gradients,
    traced_gradients,
    weights_differ,
)
from multihead.torch.schema import LAYER_SCHEMA, flat_layer, layer_call
from multihead.torch.tensors import dtype_of, kept_masks, settled, statistics_dtype

_LANES = 16  # the engine's rows of tokens end at multiples of this
_FEATURES = 32  # and a head's features of bfloat16 at divisors of this
_FORWARD = "multihead::attention"
_BACKWARD = "multihead::attention_backward"

# out, shaped like query; weights (N, H or 1, L, S'), or (0,) for none; what backward needs: so many
# elements, or none. They are an argument, as PyTorch keeps what it compiled by that.
torch.library.define(_FORWARD, f"({LAYER_SCHEMA}, SymInt kept) -> (Tensor, Tensor, Tensor)")
# the gradients that are needed, in the order of the tensors
torch.library.define(
    _BACKWARD,
    f"(Tensor d_out, Tensor? d_weights, Tensor cache, {LAYER_SCHEMA}, bool[] needed) -> Tensor[]",
)


def attention(call: LayerCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Call the operation; dropout's seed is a tensor."""
    kept = cache_elements(call) if needs_grad(call.tensors) else 0
    out, weights, _ = torch.ops.multihead.attention(*flat_layer(call), kept)
    return out, None if call.options.average is None else weights


def _seeded(call: LayerCall) -> LayerCall:
    seed = call.options.seed
    return call if seed is None else call._replace(options=call.options._replace(seed=int(seed)))


def cache_elements(call: LayerCall) -> Any:
    """Return how many elements backward needs at most: q and out, k and v, two of each row."""
    tensors, options, offsets = call
    query, key, _ = tensors.three
    extra = (tensors.bias_k is not None) + options.zero_row

    def lanes(x: Any, steps: Any, more: int) -> Any:
        if steps is not None:
            return x.shape[0] + (steps.shape[0] - 1) * (_LANES - 1 + more)
        n, tokens = (1, 0) if options.tokens_first else (0, 1)
        return x.shape[n] * ((x.shape[tokens] + more + _LANES - 1) // _LANES * _LANES)

    q_steps, k_steps = offsets or (None, None)
    width = 2 * options.head_dim
    if options.dtype == "bfloat16":  # half as large, or filled up
        width = max(width, (options.head_dim + _FEATURES - 1) // _FEATURES * _FEATURES)
    rows = lanes(query, q_steps, 0) * options.num_heads * (width + 2)
    return rows + lanes(key, k_steps, extra) * options.key_heads * width


def _new_cache(call: LayerCall, kept: Any) -> torch.Tensor:
    made: torch.Tensor = call.tensors.query.new_empty(kept, dtype=statistics_dtype(call))
    return made


def _forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    call, (kept,) = layer_call(arguments)
    cache = _new_cache(call, kept)
    out, weights, _ = engine.forward(_seeded(call), cache if kept else False)
    return out, out.new_empty(0) if weights is None else weights, cache


def _fake_forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    call, (kept,) = layer_call(arguments)
    query, dtype = call.tensors.query, dtype_of(call)
    cache = _new_cache(call, kept)
    if call.options.average is not None and call.offsets is not None:
        weights = query.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=dtype)
    elif call.options.average is not None:
        weights = engine.new_weights(call)
    else:
        weights = query.new_empty(0, dtype=dtype)
    return query.new_empty(query.shape, dtype=dtype), weights, cache


def _backward(d_out: Any, d_weights: Any, cache: Any, *arguments: Any) -> list[torch.Tensor]:
    call, (needed,) = layer_call(arguments)
    grads = settled(d_out), settled(d_weights)
    found = engine.backward(_seeded(call), cache, grads, needed_gradients(needed))
    return [grad for grad in found if grad is not None]


def _fake_backward(d_out: Any, d_weights: Any, cache: Any, *arguments: Any) -> list[torch.Tensor]:
    call, (needed,) = layer_call(arguments)
    return [torch.empty_like(x) for x, n in zip(call.tensors, needed, strict=True) if n]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    (tensors, options, offsets), _ = layer_call(inputs)
    if not torch.compiler.is_compiling():
        tensors = LayerTensors(*kept_masks(tensors))
    _, _, cache = output
    ctx.save_for_backward(*tensors, options.seed, *(offsets or (None, None)), cache)
    ctx.options = options._replace(seed=None)
    ctx.others = len(inputs) - len(tensors)
    ctx.set_materialize_grads(False)
    differ = weights_differ(_needed(ctx))
    ctx.mark_non_differentiable(*(output[2:] if differ else output[1:]))


def _needed(ctx: Any, of_out: bool = True) -> frozenset[str]:
    return needed_gradients(ctx.needs_input_grad[: len(LayerTensors._fields)], of_out)


def _gradients(ctx: Any, d_out: Any, d_weights: Any, _: Any) -> tuple[Any, ...]:
    *saved, seed, q_offsets, k_offsets, cache = ctx.saved_tensors
    offsets = None if q_offsets is None else Offsets(q_offsets, k_offsets)
    call = LayerCall(LayerTensors(*saved), ctx.options._replace(seed=seed), offsets)
    grads = d_out, None if call.options.average is None else d_weights
    needed = _needed(ctx, d_out is not None)
    if torch.is_grad_enabled():  # to be differentiated once more
        found = layer_derivatives(_seeded(call), grads, needed)
    else:
        found = traced_gradients(call, cache, grads, needed)
    return *found, *[None] * ctx.others


def _flops(arguments: Any) -> tuple[int, int]:
    """Count those of one forward, and of the scores: a multiplication and an addition are two."""
    (tensors, options, offsets), _ = layer_call(arguments)
    (query, key, value), (features, inner) = tensors.three, tensors.out_weight.shape
    of_keys = options.key_heads * options.head_dim
    tokens, sources = query.shape[:-1].numel(), key.shape[:-1].numel()
    if offsets is None:
        pairs = tokens * key.shape[0 if options.tokens_first else 1]
    else:
        pairs = int((offsets.query.diff() * offsets.key.diff()).sum())
    projections = inner * tokens * (query.shape[-1] + features)
    projections += of_keys * sources * (key.shape[-1] + value.shape[-1])
    scores = 2 * inner * pairs
    return 2 * projections + 2 * scores, scores


def _forward_flops(*arguments: Any, out_val: Any = None) -> int:
    total, _ = _flops(arguments)
    return total


def _backward_flops(
    d_out: Any, d_weights: Any, cache: Any, *arguments: Any, out_val: Any = None
) -> int:
    # two products for each of the forward's, and the scores again
    forward, scores = _flops(arguments)
    return 2 * forward + scores


torch.library.impl(_FORWARD, "CPU", _forward)
torch.library.register_fake(_FORWARD, _fake_forward)
torch.library.impl(_BACKWARD, "CPU", _backward)
torch.library.register_fake(_BACKWARD, _fake_backward)
torch.library.register_autograd(_FORWARD, _gradients, setup_context=_set_up)
register_flop_formula(torch.ops.multihead.attention, get_raw=True)(_forward_flops)
register_flop_formula(torch.ops.multihead.attention_backward, get_raw=True)(_backward_flops)
