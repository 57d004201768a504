"""The options that PyTorch's function lacks, on tensors: the face for arrays is the measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from multihead import functional
from multihead.torch import scaled_dot_product_attention

pytestmark = pytest.mark.filterwarnings("ignore::multihead.MaskWarning")

RULES: dict[str, Callable[[], Any]] = {
    "window": lambda: (20, 5),
    "query_offset": lambda: "end",
    "key_lengths": lambda: torch.tensor([40, 50]),
    "softcap": lambda: 3.0,
    "alibi_slopes": lambda: torch.rand(6, dtype=torch.float64),
    "sinks": lambda: torch.randn(6, dtype=torch.float64, requires_grad=True),
}


def arrays(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: x.detach().numpy() if isinstance(x, torch.Tensor) else x
        for name, x in options.items()
    }


def drawn(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    shapes = (2, 6, 33, 8), (2, 2, 50, 8), (2, 2, 50, 5), (33, 50)
    return [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("names", "compiled"),
    [*(([x], False) for x in RULES), (list(RULES), False), (list(RULES), True)],
    ids=[*RULES, "all", "all-compiled"],
)
def test_agrees_with_the_arrays_face(names: list[str], compiled: bool) -> None:
    rules = {name: RULES[name]() for name in names}
    attend: Callable[..., Any] = scaled_dot_product_attention
    if compiled:
        torch.compiler.reset()
        attend = torch.compile(attend, fullgraph=True, backend="aot_eager")
    inputs = drawn()
    found = functional.scaled_dot_product_attention(
        *(x.detach().numpy() for x in inputs),
        enable_gqa=True,
        return_lse=True,
        return_cache=True,
        **arrays(rules),
    )
    expected = [torch.from_numpy(x) for x in found[:2]]
    out, lse = attend(*inputs, enable_gqa=True, return_lse=True, **rules)
    torch.testing.assert_close((out, lse), tuple(expected))
    d_out, d_lse = torch.randn_like(out), torch.randn_like(lse)
    wanted = functional.scaled_dot_product_attention_backward(
        d_out.numpy(), found[2], need_mask_grad=True, need_sink_grad=True, d_lse=d_lse.numpy()
    )
    leaves = [*inputs, *[x for name, x in rules.items() if name == "sinks"]]
    grads = torch.autograd.grad((out, lse), leaves, (d_out, d_lse))
    for mine, theirs in zip(grads, wanted, strict=False):
        torch.testing.assert_close(mine, torch.from_numpy(theirs))
    alone = attend(*inputs, enable_gqa=True, **rules)
    torch.testing.assert_close(alone, out)
    with torch.no_grad():
        assert torch.equal(scaled_dot_product_attention(*inputs, enable_gqa=True, **rules), alone)


@pytest.mark.timeout(120)
def test_first_and_second_derivatives() -> None:
    def attend(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, sinks, mask = tensors
        slopes = torch.tensor([0.1, 0.2], dtype=torch.float64)
        return scaled_dot_product_attention(
            q,
            k,
            v,
            mask,
            enable_gqa=True,
            window=(2, 1),
            query_offset=1,
            key_lengths=torch.tensor([4]),
            softcap=2.0,
            alibi_slopes=slopes,
            sinks=sinks,
            return_lse=True,
        )

    shapes = (1, 2, 3, 4), (1, 1, 5, 4), (1, 1, 5, 2), (2,), (3, 5)
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(attend, leaves)
    assert torch.autograd.gradgradcheck(attend, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sinks_of_the_dtype_of_the_model_have_gradients(dtype: torch.dtype) -> None:
    q, k, v, _ = drawn(dtype)
    sinks = torch.randn(6, dtype=dtype, requires_grad=True)
    options: dict[str, Any] = {"sinks": sinks, "softcap": 2.0, "enable_gqa": True}
    out = scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    out.sum().backward()
    assert out.dtype == dtype
    assert sinks.grad is not None
    assert sinks.grad.dtype == dtype
    wide = [x.detach().double().requires_grad_() for x in (q, k, v, sinks)]
    options["sinks"] = wide[3]
    expected = scaled_dot_product_attention(*wide[:3], is_causal=True, **options)
    expected.sum().backward()
    close = {"rtol": 3e-2, "atol": 3e-2} if dtype != torch.float32 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out.double(), expected, **close)
    torch.testing.assert_close(sinks.grad.double(), wide[3].grad, **close)


def test_function_transforms_and_autocast() -> None:
    x = torch.randn(3, 1, 2, 4, 8)
    each = torch.func.vmap(lambda z: scaled_dot_product_attention(z, z, z, window=1))(x)
    torch.testing.assert_close(each, scaled_dot_product_attention(x, x, x, window=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scaled_dot_product_attention(x, x, x, softcap=1.0)
    assert out.dtype == torch.bfloat16


@pytest.mark.timeout(120)
def test_a_program_exports_with_rules() -> None:
    class Attend(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return scaled_dot_product_attention(
                q, k, k, enable_gqa=True, is_causal=True, window=(3, 0), softcap=2.0, sinks=s
            )

    given = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(4)
    program = torch.export.export(Attend(), given).module()
    torch.testing.assert_close(program(*given), Attend()(*given))


@pytest.mark.parametrize("masked", [False, True])
def test_grouped_heads_are_pytorchs(masked: bool) -> None:
    q, k, v, _ = drawn(torch.float32)
    mask = torch.rand(2, 6, 33, 50) < 0.7 if masked else None
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    ours = scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    d_out = torch.randn_like(ours)
    pairs = (torch.autograd.grad(x, (q, k, v), d_out) for x in (ours, theirs))
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": -1}, r"window\[0\]: expected an integer at least 0"),
        ({"query_offset": "start"}, "query_offset: expected integers or"),
        ({"query_offset": [1, 2, 3]}, r"query_offset: expected \(2,\), got \(3,\)"),
        ({"key_lengths": torch.tensor([1.0, 2.0])}, "key_lengths: expected integers, got float32"),
        ({"key_lengths": torch.tensor([1, 51])}, "key_lengths: expected from 0 to 50, got 51"),
        ({"softcap": -1.0}, "softcap: expected None or a number above 0"),
        ({"alibi_slopes": torch.ones(5)}, r"alibi_slopes: expected \(6,\) or \(2, 6\), got \(5,\)"),
        ({"alibi_slopes": torch.ones(6, requires_grad=True)}, "slopes without a gradient"),
        ({"sinks": torch.ones(2, 6)}, r"sinks: expected \(6,\), got \(2, 6\)"),
        ({"query": torch.ones(2, 6, 33, 9), "window": 1}, "window, query_offset, .* expected none"),
    ],
)
def test_wrong_options_are_named(change: dict[str, Any], message: str) -> None:
    q, k, v, _ = drawn()
    given = {"query": q, "key": k, "value": v, "enable_gqa": True} | change
    with pytest.raises((ValueError, TypeError), match=message):
        scaled_dot_product_attention(**given)


def test_no_key_at_all_is_zero_and_minus_infinity() -> None:
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    out, lse = scaled_dot_product_attention(
        q, q, q, key_lengths=torch.tensor([0]), sinks=torch.ones(2), return_lse=True
    )
    assert not out.any()
    assert (lse == -np.inf).all()
    out.sum().backward()
    assert q.grad is not None
    assert not q.grad.any()
