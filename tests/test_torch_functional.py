"""`multihead.torch.scaled_dot_product_attention` beside PyTorch's own."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as pytorch_s

from multihead.torch import scaled_dot_product_attention
from tolerance import CANCELLED, TORCH, assert_close, tolerance

BOUND = {torch.float32: tolerance(TORCH, "float32"), torch.float64: tolerance(TORCH, "float64")}

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "4-D": ((2, 3, 7, 8), (2, 3, 9, 8), (2, 3, 9, 5)),
    "3-D": ((3, 7, 8), (3, 9, 8), (3, 9, 8)),
    "2-D": ((7, 8), (9, 8), (9, 8)),
    "5-D": ((2, 2, 3, 7, 8), (2, 2, 3, 9, 8), (2, 2, 3, 9, 8)),
    "broadcast": ((2, 3, 7, 8), (1, 3, 9, 8), (2, 1, 9, 8)),
    "long": ((1, 2, 130, 16), (1, 2, 200, 16), (1, 2, 200, 16)),
    "grouped": ((2, 6, 7, 8), (2, 2, 9, 8), (2, 2, 9, 8)),
    "one query": ((2, 3, 1, 8), (2, 3, 9, 8), (2, 3, 9, 8)),
}
MASKS = ("none", "causal", "bool", "bool row", "float", "float 2-D", "float row")


def mask_of(kind: str, scores: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
    if kind in ("none", "causal"):
        return None
    shape = {
        "bool": scores,
        "bool row": (*[1] * (len(scores) - 1), scores[-1]),
        "float": scores,
        "float 2-D": scores[-2:],
        "float row": (*[1] * (len(scores) - 1), scores[-1]),
    }[kind]
    if "bool" in kind:
        mask = torch.rand(shape) < 0.7
        mask[..., 0] = True
        return mask
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_agrees_with_pytorch(shape: str, mask: str) -> None:
    dtype = torch.float64
    q, k, v = (torch.randn(s, dtype=dtype, requires_grad=True) for s in SHAPES[shape])
    m = mask_of(mask, (*q.shape[:-1], k.shape[-2]), dtype)
    how = {"is_causal": mask == "causal", "enable_gqa": shape == "grouped", "scale": 0.3}
    inputs = [q, k, v, *([m] if m is not None and m.requires_grad else [])]
    results = []
    for attend in (scaled_dot_product_attention, pytorch_s):
        out = attend(q, k, v, m, **how)
        grad = torch.linspace(-1, 2, out.numel(), dtype=dtype).view_as(out)
        results.append((out, *torch.autograd.grad(out, inputs, grad)))
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        # a query that sees one key has a gradient of zero, from terms about as large as one
        a, b = found.detach().numpy(), expected.detach().numpy()
        assert_close(a, b, BOUND[dtype], scale=CANCELLED)


def test_float32_is_as_near_to_float64_as_promised() -> None:
    inputs = [torch.randn(2, 3, 150, 24, requires_grad=True) for _ in range(3)]
    grad = torch.randn(2, 3, 150, 24)
    out = scaled_dot_product_attention(*inputs, is_causal=True)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = pytorch_s(*wide, is_causal=True)
    assert_close(out.detach().numpy(), expected.detach().numpy(), BOUND[torch.float32])
    found = torch.autograd.grad(out, inputs, grad)
    for a, b in zip(found, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        assert_close(a.numpy(), b.numpy(), BOUND[torch.float32])


def test_memory_of_the_result_follows_the_query() -> None:
    q, k, v = (torch.randn(2, 9, 3, 8).transpose(1, 2) for _ in range(3))
    assert scaled_dot_product_attention(q, k, v).transpose(1, 2).is_contiguous()
    q, k, v = (torch.randn(2, 3, 9, 8) for _ in range(3))
    assert scaled_dot_product_attention(q, k, v).is_contiguous()


def test_dropout_follows_pytorch_s_generator() -> None:
    q = torch.randn(2, 3, 40, 8)
    v = torch.eye(40).expand(2, 3, 40, 40)
    torch.manual_seed(3)
    weights = scaled_dot_product_attention(q, q, v, dropout_p=0.3)
    other = scaled_dot_product_attention(q, q, v, dropout_p=0.3)
    torch.manual_seed(3)
    assert torch.equal(weights, scaled_dot_product_attention(q, q, v, dropout_p=0.3))
    assert not torch.equal(weights, other)
    kept = weights != 0
    assert 0.66 < kept.double().mean() < 0.74
    plain = scaled_dot_product_attention(q, q, v)
    assert_close(weights[kept].numpy(), (plain[kept] / 0.7).numpy(), BOUND[torch.float32])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_first_and_second_derivatives(mask: str, dropout: float) -> None:
    q, k, v = (torch.randn(2, 1, n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3))
    m = mask_of(mask, (1, 1, 2, 3), torch.float64)
    if mask == "bool":
        m = torch.tensor([[True, False, True], [False, False, False]])

    def call(*tensors: Any) -> torch.Tensor:
        torch.manual_seed(1)
        return scaled_dot_product_attention(*tensors, dropout_p=dropout, is_causal=mask == "causal")

    assert torch.autograd.gradcheck(call, (q, k, v, m))
    assert torch.autograd.gradgradcheck(call, (q, k, v, m))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_function_transforms() -> None:
    q, k, v = (torch.randn(4, 2, 3, 5, 8, dtype=torch.float64) for _ in range(3))
    every = torch.stack([pytorch_s(*x) for x in zip(q, k, v, strict=True)])
    found = torch.vmap(scaled_dot_product_attention)(q, k, v)
    assert_close(found.numpy(), every.numpy(), 1e-12)
    tangent = torch.randn_like(q)
    slope = torch.func.jvp(lambda x: scaled_dot_product_attention(x, k, v), (q,), (tangent,))[1]
    step = 1e-6
    ahead, behind = (pytorch_s(q + sign * step * tangent, k, v) for sign in (1, -1))
    assert_close(slope.numpy(), ((ahead - behind) / (2 * step)).numpy(), 1e-7)


def test_a_query_with_nothing_to_see_gets_zeros() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[3] = False
    for given in (mask, torch.zeros(5, 5).masked_fill(~mask, -math.inf)):
        out = scaled_dot_product_attention(q, k, v, given)
        assert not out[:, :, 3].any()
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        assert all(torch.isfinite(g).all() for g in grads)
        assert not grads[0][:, :, 3].any()


def test_causality_and_a_mask_together_are_both() -> None:
    q, k, v = (torch.randn(2, 2, 7, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(7, 7) < 0.6
    mask.fill_diagonal_(True)
    both = scaled_dot_product_attention(q, k, v, mask, is_causal=True)
    assert_close(both.numpy(), pytorch_s(q, k, v, mask.tril()).numpy(), 1e-12)


WRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "dtypes": ((torch.float32, torch.float64, torch.float32), {}),
    "mask": (None, {"attn_mask": torch.zeros(3, 4)}),
    "mask dtype": (None, {"attn_mask": torch.zeros(5, 5, dtype=torch.int64)}),
    "probability": (None, {"dropout_p": 1.5}),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_are_pytorch_s(what: str) -> None:
    dtypes, options = WRONG[what]
    dtypes = dtypes or [torch.float32] * 3
    inputs = [torch.randn(2, 3, 5, 8, dtype=dtype) for dtype in dtypes]
    failures = []
    for attend in (pytorch_s, scaled_dot_product_attention):
        with pytest.raises((RuntimeError, ValueError)) as failure:
            attend(*inputs, **options)
        failures.append((failure.type, str(failure.value)))
    assert failures[0] == failures[1]


def test_other_devices_and_dtypes_go_to_pytorch() -> None:
    x = torch.randn(2, 3, 5, 8, device="meta")
    assert scaled_dot_product_attention(x, x, x).device.type == "meta"


def test_autocast_returns_its_dtype() -> None:
    q, k, v = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = scaled_dot_product_attention(q, k.bfloat16(), v)
    assert out.dtype == torch.bfloat16
    expected = pytorch_s(q, k.bfloat16().float(), v)
    assert (out.float() - expected).abs().max() < 0.02
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def outcome(function: Any, *args: Any, **how: Any) -> torch.Tensor | type:
    try:
        return function(*args, **how)
    except (RuntimeError, TypeError, IndexError) as error:
        return type(error)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("heads", [0, 1, 4])
def test_masks_of_any_shape_that_pytorch_takes_are_taken(
    batch: int, heads: int, grouped: bool
) -> None:
    q = torch.randn(batch, heads, 5, 8, dtype=torch.float64)
    k = torch.randn(batch, min(heads, 2) if grouped else heads, 7, 8, dtype=torch.float64)
    leads = itertools.product({1, batch, 3}, {1, heads, 3})
    shapes = [(*lead[cut:], *rows) for lead in leads for cut in range(3) for rows in ROWS]
    for shape in [*sorted(set(shapes)), (7,), (), (1, 1, 1, 5, 7), (2, 1, 1, 5, 7)]:
        for mask in (torch.randn(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.bool)):
            expected, found = (
                outcome(f, q, k, k, mask, enable_gqa=grouped)
                for f in (pytorch_s, scaled_dot_product_attention)
            )
            if isinstance(expected, torch.Tensor):
                assert isinstance(found, torch.Tensor), (shape, found)
                assert found.shape == expected.shape
                if found.numel():
                    assert_close(found.numpy(), expected.numpy(), BOUND[torch.float64])
            else:
                assert found is expected, shape


ROWS = [(5, 7), (1, 7), (5, 1), (1, 1), (5, 0)]


def test_it_may_take_the_place_of_pytorch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    # what it does not compute itself goes to PyTorch's own, not to what has its name
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", scaled_dot_product_attention
    )
    q = torch.randn(2, 3, 5, 8, device="meta")
    assert torch.nn.functional.scaled_dot_product_attention(q, q, q).is_meta
    wrong = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 8)
    with pytest.raises(RuntimeError):
        torch.nn.functional.scaled_dot_product_attention(*wrong)
    integers = torch.ones(2, 3, 5, 8, dtype=torch.int64)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.nn.functional.scaled_dot_product_attention(integers, integers, integers)


@pytest.mark.parametrize(
    "how",
    [
        {"scale": torch.tensor(0.5, requires_grad=True)},
        {"dropout_p": torch.tensor(0.5, requires_grad=True)},
        {"is_causal": torch.tensor(1.0, requires_grad=True)},
        {"scale": "0.5"},
        {"is_causal": "no"},
        {"is_causal": 1},
        {"dropout_p": "0.1"},
    ],
    ids=str,
)
def test_options_that_pytorch_refuses_are_refused(how: dict[str, Any]) -> None:
    q = torch.randn(2, 3, 5, 8)
    for function in (pytorch_s, scaled_dot_product_attention):
        with pytest.raises(TypeError):
            function(q, q, q, **how)
