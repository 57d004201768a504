"""What a mask hides from the torch faces is read on no path, and what it shows is."""

from __future__ import annotations

import pytest
import torch

from multihead.torch import scaled_dot_product_attention
from torch_pairs import close, pair

pytorch_s = torch.nn.functional.scaled_dot_product_attention


def test_what_padding_hides_is_not_read_on_any_path() -> None:
    _, ours = pair(8, 2)
    q = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)
    k = torch.randn(5, 2, 8, dtype=torch.float64)
    k[4] = float("nan")
    for padding in (torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.float64)):
        padding[:, 4] = True if padding.dtype == torch.bool else -float("inf")
        out = ours(q, k, k, key_padding_mask=padding)[0]
        first = torch.autograd.grad(out.sum(), q, retain_graph=True)[0]
        again = torch.autograd.grad(out.sum(), q, create_graph=True)[0]
        close(again, first)
        mapped = torch.vmap(lambda q, p=padding: ours(q, k, k, p)[0])(q[None])[0]
        close(mapped, out)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("mask", ["bool", "float", "causal"])
def test_what_an_attn_mask_hides_stays_hidden_on_any_path(mask: str) -> None:
    _, ours = pair(12, 3, batch_first=True)
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 7, 12, dtype=torch.float64)
    memory[0, 6], memory[1, 6, 3] = float("nan"), float("inf")
    hidden = torch.rand(5, 7) < 0.2
    hidden[:, 0], hidden[:, 6] = False, True
    given = {
        "bool": {"attn_mask": hidden},
        "float": {"attn_mask": torch.zeros(5, 7).double().masked_fill(hidden, -float("inf"))},
        "causal": {"is_causal": True},
    }[mask]
    memory.requires_grad_()
    out, weights = ours(x, memory, memory, **given)
    assert torch.isfinite(out).all()
    bias = ours.in_proj_bias
    loss = out.square().sum() + weights.square().sum()
    first = torch.autograd.grad(loss, [x, memory, bias], retain_graph=True)
    again = torch.autograd.grad(loss, [x, memory, bias], create_graph=True)
    for found, expected in zip(again, first, strict=True):
        assert torch.isfinite(expected).all()
        close(found, expected)
    mapped = torch.vmap(lambda q: ours(q, memory, memory, **given)[0])(x[None])[0]
    close(mapped, out)
    tangent = torch.ones_like(x)
    _, pushed = torch.func.jvp(lambda q: ours(q, memory, memory, **given)[0], (x,), (tangent,))
    assert torch.isfinite(pushed).all()


def test_what_a_mask_shows_is_as_it_is_on_any_path() -> None:
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 6, 4)
    k[0, 0, 4, 1] = float("nan")
    v = torch.randn(1, 1, 6, 2)
    v[0, 0, 1, 0], v[0, 0, 2, 0], v[0, 0, 3, 1] = float("inf"), -float("inf"), float("inf")
    mask = torch.tensor([[1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 1], [1, 1, 1, 0, 1, 1]]).bool()
    out = scaled_dot_product_attention(q, k, v, mask)
    mapped = torch.vmap(lambda q: scaled_dot_product_attention(q, k, v, mask))(q[None])[0]
    torch.testing.assert_close(mapped, out, equal_nan=True)
    assert torch.isfinite(out[0, 0, 0]).all()
    assert (out[0, 0, 1] == float("inf")).all()
    assert out[0, 0, 2].isnan().all()
