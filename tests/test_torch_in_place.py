"""Changes in place between forward and backward: what PyTorch lets be changed may be changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from multihead.torch import MultiheadAttention, scaled_dot_product_attention
from tolerance import CANCELLED, assert_close

pytorch_s = torch.nn.functional.scaled_dot_product_attention


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    a, b = found.detach().numpy(), expected.detach().numpy()
    assert_close(a, b, 1e-11, scale=CANCELLED)


def added_in_place(module: Any, x: torch.Tensor, memory: torch.Tensor, **how: Any) -> Any:
    """Gradients of blocks whose residuals are added to the layer's inputs."""
    leaves = [x.clone().requires_grad_(), memory.clone().requires_grad_()]
    y, z = (leaf * 1.5 for leaf in leaves)
    y += module(y, y, y, **how)[0]
    out = module(y, z, z, **how)[0]
    z += 1
    y += out
    y *= 2
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.autograd.grad((y.square() * z.mean()).sum(), [*leaves, *trained])


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("kind", ["batch first", "frozen", "frozen unbatched"])
def test_a_residual_may_be_added_to_the_layer_s_input(kind: str, weights: bool) -> None:
    first = kind == "batch first"
    pair = [
        kind(12, 3, batch_first=first, dtype=torch.float64)
        for kind in (torch.nn.MultiheadAttention, MultiheadAttention)
    ]
    pair[1].load_state_dict(pair[0].state_dict())
    shape = (12,) if kind == "frozen unbatched" else (3, 12)
    x, memory = (torch.randn(n, *shape, dtype=torch.float64) for n in (5, 7))
    if first:
        x, memory = (t.transpose(0, 1).contiguous() for t in (x, memory))
    else:
        for module in pair:
            module.requires_grad_(False)
    expected, found = (added_in_place(m, x, memory, need_weights=weights) for m in pair)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@pytest.mark.filterwarnings("error")
def test_second_derivatives_do_not_see_the_change() -> None:
    ours = MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    grads = []
    for changed in (False, True):
        leaf = torch.linspace(-1, 1, 48, dtype=torch.float64).view(2, 3, 8).requires_grad_()
        y = leaf * 1
        out = ours(y, y, y)[0]
        if changed:
            y += 5
        (first,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        grads.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    close(grads[1], grads[0])


CHANGED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "dropout": ({"dropout_p": 1.0}, (2, 3, 5, 8)),
    "three axes": ({}, (3, 5, 8)),
    "mask gradient": ({"attn_mask": torch.zeros(5, 5, dtype=torch.float64)}, (2, 3, 5, 8)),
}


@pytest.mark.parametrize("before", ["heads", "tokens"])
@pytest.mark.parametrize("kind", CHANGED)
def test_the_result_of_attention_may_be_changed(kind: str, before: str) -> None:
    how, shape = CHANGED[kind]
    base = torch.randn(3, *shape, dtype=torch.float64)
    results = []
    for function in (pytorch_s, scaled_dot_product_attention):
        q, k, v = leaves = [x.clone().requires_grad_() for x in base]
        if before == "tokens":
            q = q.transpose(-2, -3).contiguous().transpose(-2, -3)
        given = dict(how)
        if "attn_mask" in given:
            leaves.append(given["attn_mask"].clone().requires_grad_())
            given["attn_mask"] = leaves[-1]
        out = function(q, k, v, **given)
        out *= 2
        out += 1
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for expected, found in zip(*results, strict=True):
        close(found, expected)


def test_where_pytorch_keeps_its_result_a_change_raises() -> None:
    for axes in ((1, 2), (2, 1)):
        q = torch.randn(2, 3, 5, 8).transpose(*axes).contiguous().transpose(*axes)
        q.requires_grad_()
        for function in (pytorch_s, scaled_dot_product_attention):
            out = function(q, q, q)
            out *= 2
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.sum().backward()
