"""Where arrays lie in memory changes no bits."""

from __future__ import annotations

import pytest
import torch

import kernel_sets
from multihead import _native
from multihead.torch import MultiheadAttention

SETS = (*kernel_sets.OURS, *kernel_sets.DISTINCT_PAIRS)


def moved(x: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy of a tensor that begins so many elements after a line of 64 bytes."""
    memory = torch.empty(x.numel() + 128, dtype=x.dtype)
    first = -memory.data_ptr() % 64 // x.element_size() + offset
    return memory[first : first + x.numel()].view(x.shape).copy_(x)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 16), (4, 8), (8, 20), (1, 64), (2, 33)])
def test_where_arrays_lie_changes_no_bits(
    isa: str, dtype: torch.dtype, heads: int, head_dim: int
) -> None:
    embed = heads * head_dim
    first = MultiheadAttention(embed, heads, batch_first=True, dtype=dtype)
    state = first.state_dict()
    # many, for rounding to bfloat16 hides most differences, and few enough not to pack weights
    x, g = (torch.randn(8, 37, embed, dtype=dtype) for _ in "xg")
    before = _native.use_isa(isa)
    try:
        found = []
        for offset in (0, 1, 8):
            module = MultiheadAttention(embed, heads, batch_first=True, dtype=dtype)
            for name, parameter in module.named_parameters():
                parameter.data = moved(state[name], offset)
            at = moved(x, offset).requires_grad_()
            out, weights = module(at, at, at)
            out.backward(moved(g, offset))
            grads = [parameter.grad for parameter in module.parameters()]
            found.append([y.detach().clone() for y in (out, weights, at.grad, *grads)])
        for other in found[1:]:
            assert all(map(torch.equal, found[0], other))
    finally:
        _native.use_isa(before)
