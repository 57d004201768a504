"""The layer on the engine, as an autograd function."""

from __future__ import annotations

from typing import Any

import torch

from multihead.torch import engine
from multihead.torch.composed import composed
from multihead.torch.options import Offsets, Options


class Attention(torch.autograd.Function):
    """The layer: gradients of inputs, float masks and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        offsets: Offsets | None,
        *tensors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the engine; the tensors are those of `options.TENSORS`."""
        out, weights, ctx.cache = engine.forward(options, tensors, offsets, True)
        ctx.call = options, offsets
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return out, weights

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor | None, d_weights: torch.Tensor | None) -> Any:
        """Return the gradients of all that `forward` took, in its order."""
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # to be differentiated once more
            grads = _differentiable(ctx, d_out, d_weights, needed)
        else:
            options, offsets = ctx.call
            grads = engine.backward(
                options, ctx.saved_tensors, offsets, ctx.cache, d_out, d_weights, needed
            )
        return None, None, *grads


def _differentiable(
    ctx: Any, d_out: torch.Tensor | None, d_weights: torch.Tensor | None, needed: Any
) -> list[torch.Tensor | None]:
    """Return the gradients with a graph of their own."""
    options, offsets = ctx.call
    # apart from each other where one tensor was given several times
    tensors = [x if x is None else x.view_as(x) for x in ctx.saved_tensors]
    results = composed(options, tensors, offsets)
    pairs = [
        (result, grad)
        for result, grad in zip(results, (d_out, d_weights), strict=True)
        if result is not None and grad is not None
    ]
    wanted = [i for i, x in enumerate(tensors) if needed[i]]
    grads: list[torch.Tensor | None] = [None] * len(tensors)
    if pairs:
        found = torch.autograd.grad(
            [result for result, _ in pairs],
            [tensors[i] for i in wanted],
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
    return grads
