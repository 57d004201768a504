"""The layer on the engine, as an autograd function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from multihead.torch import engine
from multihead.torch.composed import composed, derivatives
from multihead.torch.options import Offsets, Options
from multihead.torch.tensors import batched, kept_masks, settled, traced, transformed, unpacked

# by their places: what the weights depend on, and what only the output does
_OF_WEIGHTS = (0, 1, 3, 4, 5, 6, 7, 9, 10)
_OF_OUT_ALONE = (2, 8, 11, 12, 13)


def needed_gradients(needed: Any, d_out: torch.Tensor | None) -> list[bool]:
    """Say which gradients there are: without one of the output, none of what only it depends on."""
    return [bool(n) and (d_out is not None or i not in _OF_OUT_ALONE) for i, n in enumerate(needed)]


def traced_gradients(
    options: Options,
    tensors: Sequence[torch.Tensor | None],
    offsets: Offsets | None,
    seed: torch.Tensor | None,
    cache: torch.Tensor,
    d_out: torch.Tensor | None,
    d_weights: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Return the gradients through the operation; dropout's seed is a tensor."""
    needed = [bool(n) and x is not None for x, n in zip(tensors, needed, strict=True)]
    query = tensors[0]
    assert query is not None
    found = torch.ops.multihead.attention_backward(
        torch.zeros_like(query) if d_out is None else d_out,
        d_weights,
        cache,
        *tensors,
        seed,
        *(offsets or (None, None)),
        *options[:6],
        needed,
    )
    rest = iter(found)
    return [next(rest) if n else None for n in needed]


def weights_differ(needed: Sequence[bool]) -> bool:
    """Whether the weights depend on a tensor whose gradient is needed."""
    return any(needed[i] for i in _OF_WEIGHTS)


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
        out, weights, cache = engine.forward(options, tensors, offsets, True)
        ctx.call = options, offsets
        assert cache is not None
        kept = [*kept_masks(tensors), cache]
        ctx.save_for_backward(*kept)
        ctx.shapes = [None if x is None else x.shape for x in kept]
        ctx.set_materialize_grads(False)
        if weights is not None and not weights_differ(ctx.needs_input_grad[2:]):
            ctx.mark_non_differentiable(weights)
        return out, weights

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor | None, d_weights: torch.Tensor | None) -> Any:
        """Return the gradients of all that `forward` took, in its order."""
        *tensors, cache = unpacked(ctx.saved_tensors, ctx.shapes)
        assert cache is not None
        options, offsets = ctx.call
        needed = needed_gradients(ctx.needs_input_grad[2:], d_out)
        if torch.is_grad_enabled() or transformed() or batched(d_out) or batched(d_weights):
            grads = derivatives(
                lambda copies: composed(options, copies, offsets),
                tensors,
                (d_out, d_weights),
                needed,
            )
            return None, None, *grads
        d_out, d_weights = settled(d_out), settled(d_weights)
        if traced():
            seed = None if options.seed is None else torch.tensor(options.seed, device="cpu")
            grads = traced_gradients(
                options, tensors, offsets, seed, cache, d_out, d_weights, needed
            )
        else:
            grads = engine.backward(
                options, tensors, offsets, cache.contiguous(), d_out, d_weights, needed
            )
        return None, None, *grads
