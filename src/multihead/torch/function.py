"""The layer on the engine, as an autograd function."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from multihead.arguments import LayerOptions, LayerTensors
from multihead.torch import engine
from multihead.torch.calls import LayerCall, Offsets
from multihead.torch.composed import composed, derivatives
from multihead.torch.dispatch import traced, transformed
from multihead.torch.schema import flat_layer
from multihead.torch.tensors import batched, kept_masks, settled, unpacked

# what the output depends on, and the weights do not
_OF_OUT_ALONE = frozenset({"value", "v_weight", "bias_v", "out_weight", "out_bias"})


def needed_gradients(flags: Sequence[bool], of_out: bool = True) -> frozenset[str]:
    """Say which gradients there are: without one of the output, none of what only it depends on."""
    named = zip(LayerTensors._fields, flags, strict=True)
    needed = frozenset(name for name, flag in named if flag)
    return needed if of_out else needed - _OF_OUT_ALONE


def weights_differ(needed: AbstractSet[str]) -> bool:
    """Whether the weights depend on a tensor whose gradient is needed."""
    return not needed <= _OF_OUT_ALONE


def traced_gradients(
    call: LayerCall,
    cache: torch.Tensor,
    grads: tuple[torch.Tensor | None, torch.Tensor | None],
    needed: AbstractSet[str],
) -> LayerTensors:
    """Return the gradients through the operation, as `engine.backward` does."""
    d_out, d_weights = grads
    named = zip(LayerTensors._fields, call.tensors, strict=True)
    flags = [x is not None and name in needed for name, x in named]
    found = torch.ops.multihead.attention_backward(
        engine.new_out(call).zero_() if d_out is None else d_out,
        d_weights,
        cache,
        *flat_layer(call),
        flags,
    )
    rest = iter(found)
    return LayerTensors(*[next(rest) if flag else None for flag in flags])


def attend(call: LayerCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the layer at once, with gradients."""
    results: tuple[torch.Tensor, torch.Tensor | None]
    results = _Attention.apply(call.options, call.offsets, *call.tensors)
    return results


class _Attention(torch.autograd.Function):
    """The layer: gradients of inputs, float masks and parameters."""

    @staticmethod
    def forward(
        ctx: Any, options: LayerOptions, offsets: Offsets | None, *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the engine."""
        call = LayerCall(LayerTensors(*tensors), options, offsets)
        out, weights, cache = engine.forward(call, True)
        ctx.options, ctx.offsets = options, offsets
        kept = [*kept_masks(tensors), cache]
        ctx.save_for_backward(*kept)
        ctx.shapes = [None if x is None else x.shape for x in kept]
        ctx.set_materialize_grads(False)
        if weights is not None and not weights_differ(needed_gradients(ctx.needs_input_grad[2:])):
            ctx.mark_non_differentiable(weights)
        return out, weights

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor | None, d_weights: torch.Tensor | None) -> Any:
        """Return the gradients of all that `forward` took, in its order."""
        *saved, cache = unpacked(ctx.saved_tensors, ctx.shapes)
        assert cache is not None
        call = LayerCall(LayerTensors(*saved), ctx.options, ctx.offsets)
        grads = d_out, d_weights
        needed = needed_gradients(ctx.needs_input_grad[2:], d_out is not None)
        if torch.is_grad_enabled() or transformed() or any(map(batched, grads)):
            return None, None, *layer_derivatives(call, grads, needed)
        grads = settled(d_out), settled(d_weights)
        if not traced():
            return None, None, *engine.backward(call, cache.contiguous(), grads, needed)
        options = call.options
        if options.seed is not None:
            options = options._replace(seed=torch.tensor(options.seed, device="cpu"))
        return None, None, *traced_gradients(call._replace(options=options), cache, grads, needed)


def layer_derivatives(
    call: LayerCall,
    grads: tuple[torch.Tensor | None, torch.Tensor | None],
    needed: AbstractSet[str],
) -> LayerTensors:
    """Return the gradients with a graph of their own."""
    return derivatives(
        lambda copies: composed(call._replace(tensors=copies)), call.tensors, grads, needed
    )
