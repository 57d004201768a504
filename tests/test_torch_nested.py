"""The torch module with NestedTensors, strided and jagged, in eval and in training."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from multihead.torch import MultiheadAttention, accelerate
from tolerance import assert_close

LAYOUTS = [torch.strided, torch.jagged]
LENGTHS, SOURCES = (5, 1, 70, 16), (3, 68, 9, 1)

pytestmark = [
    pytest.mark.parametrize("layout", LAYOUTS, ids=str),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]


def nested(parts: list[torch.Tensor], layout: Any, offsets: Any = None) -> torch.Tensor:
    """Leaves in, their NestedTensor out, with a graph in between."""
    if layout == torch.strided:
        return torch.nested.as_nested_tensor(parts, layout=layout)
    values = torch.cat(parts)
    if offsets is None:
        offsets = torch.tensor([0, *np.cumsum([len(x) for x in parts])])
    return torch.nested.nested_tensor_from_jagged(values, offsets)


def leaves(lengths: tuple[int, ...], width: int) -> list[torch.Tensor]:
    return [torch.randn(n, width, dtype=torch.float64, requires_grad=True) for n in lengths]


def close(found: Any, expected: Any, name: str = "") -> None:
    assert_close(found.detach().numpy(), expected.detach().numpy(), 1e-12, name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"need_weights": False},
        {"is_causal": True},
        {"average_attn_weights": False},
    ],
    ids=["no weights", "causal", "per head"],
)
def test_self_attention_is_that_of_each_sequence(
    layout: Any, options: dict[str, Any], training: bool
) -> None:
    module = MultiheadAttention(12, 3, batch_first=True, add_bias_kv=True).double()
    module.train(training)
    parts = leaves(LENGTHS, 12)
    x = nested(parts, layout)
    out, weights = module(x, x, x, **options)
    assert out.layout == layout
    assert out.is_nested
    grads = [torch.randn(n, 12, dtype=torch.float64) for n in LENGTHS]
    loss = sum((a * b).sum() for a, b in zip(out.unbind(), grads, strict=True))
    squares = None if weights is None else torch.randn_like(weights)
    if squares is not None:
        loss = loss + (weights * squares).sum()
    inputs = [*parts, *module.parameters()]
    found = torch.autograd.grad(loss, inputs)
    expected_loss = 0
    for i, part in enumerate(parts):
        one, w = module(part, part, part, **options)
        close(out.unbind()[i], one)
        expected_loss = expected_loss + (one * grads[i]).sum()
        if w is not None:
            rows, columns = w.shape[-2:]
            close(weights[i][..., :rows, :columns], w)
            assert not weights[i][..., rows:, :].any()
            assert not weights[i][..., columns:].any()
            expected_loss = expected_loss + (w * squares[i][..., :rows, :columns]).sum()
    for a, b in zip(found, torch.autograd.grad(expected_loss, inputs), strict=True):
        close(a, b)


def test_cross_attention_has_lengths_of_its_own(layout: Any) -> None:
    module = MultiheadAttention(12, 3, batch_first=True, kdim=5, vdim=9).double()
    q, k, v = leaves(LENGTHS, 12), leaves(SOURCES, 5), leaves(SOURCES, 9)
    offsets = torch.tensor([0, *np.cumsum(SOURCES)])
    mask = torch.randn(max(LENGTHS), max(SOURCES), dtype=torch.float64)
    given = nested(q, layout), nested(k, layout, offsets), nested(v, layout, offsets)
    out, weights = module(*given, attn_mask=mask)
    assert weights.shape == (4, 70, 68)
    inputs = [*q, *k, *v, *module.parameters()]
    found = torch.autograd.grad(sum(x.square().sum() for x in out.unbind()), inputs)
    singles = [
        module(a, b, c, attn_mask=mask[: len(a), : len(b)])[0]
        for a, b, c in zip(q, k, v, strict=True)
    ]
    for a, b in zip(out.unbind(), singles, strict=True):
        close(a, b)
    expected = torch.autograd.grad(sum(x.square().sum() for x in singles), inputs)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_dropout_is_that_of_the_padded_batch(layout: Any) -> None:
    module = MultiheadAttention(12, 3, dropout=0.4, batch_first=True).double()
    parts = leaves(LENGTHS, 12)
    torch.manual_seed(1)
    out, _ = module(*[nested(parts, layout)] * 3)
    hidden = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    x = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    torch.manual_seed(1)
    padded, _ = module(x, x, x, key_padding_mask=hidden)
    for i, part in enumerate(out.unbind()):
        close(part, padded[i, : LENGTHS[i]])


def test_first_and_second_derivatives(layout: Any) -> None:
    module = MultiheadAttention(4, 2, dropout=0.3, batch_first=True).double()
    parts = leaves((2, 3), 4)

    def call(*parts: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        x = nested(list(parts), layout)
        out = module(x, x, x, need_weights=False)[0]
        return torch.cat(out.unbind()) if layout == torch.strided else out.values()

    assert torch.autograd.gradcheck(call, parts)
    if layout == torch.strided:  # PyTorch itself differentiates jagged ones once
        assert torch.autograd.gradgradcheck(call, parts)


@pytest.mark.parametrize("weights", [False, True])
def test_second_derivatives_of_a_leaf(layout: Any, weights: bool) -> None:
    module = MultiheadAttention(4, 2, batch_first=True).double()
    parts = leaves((2, 3), 4)

    def tokens(x: Any) -> torch.Tensor:
        return x.values() if x.layout == torch.jagged else torch.cat(x.unbind())

    def twice(x: Any) -> list[torch.Tensor]:
        out, p = module(x, x, x, need_weights=weights)
        loss = tokens(out).square().sum() + (0 if p is None else p.pow(3).sum())
        inputs = [x, *module.parameters()]
        grads = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
        rows = [tokens(g) if g.is_nested else g for g in grads]
        return torch.autograd.grad(sum(g.pow(2).sum() for g in rows), inputs, allow_unused=True)

    detached = [x.detach() for x in parts]
    found, expected = (
        twice(torch.nested.nested_tensor(detached, layout=kind, requires_grad=True))
        for kind in (layout, torch.strided)
    )
    assert (expected[0].is_nested, found[0].layout) == (True, layout)
    close(tokens(found[0]), tokens(expected[0]))
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


def test_another_default_device_changes_nothing(layout: Any) -> None:
    module = MultiheadAttention(12, 3, batch_first=True).double()
    parts = leaves(LENGTHS, 12)
    x = nested(parts, layout)
    expected = module(x, x, x)[0].unbind()
    with torch.device("meta"):
        found = module(x, x, x)[0].unbind()
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_takes_them(layout: Any, training: bool) -> None:
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=True).double()
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    alone = copy.deepcopy(encoder)
    assert accelerate(encoder) == 2
    parts = [x.detach() for x in leaves(LENGTHS, 12)]
    with torch.set_grad_enabled(training):
        out = encoder(nested(parts, layout))
        singles = [alone(x[None])[0] for x in parts]
    for found, expected in zip(out.unbind(), singles, strict=True):
        close(found, expected)
    if training:
        grads = [torch.randn_like(x) for x in singles]
        for outs in (out.unbind(), singles):
            sum((x * g).sum() for x, g in zip(outs, grads, strict=True)).backward()
        for (name, a), b in zip(encoder.named_parameters(), alone.parameters(), strict=True):
            assert_close(a.grad.numpy(), b.grad.numpy(), 1e-11, name)


def test_a_padding_mask_beside_one_is_pytorch_s_error(layout: Any) -> None:
    module = MultiheadAttention(12, 3, batch_first=True)
    x = nested([torch.randn(n, 12) for n in LENGTHS], layout)
    with pytest.raises((AssertionError, RuntimeError)):
        module(x, x, x, key_padding_mask=torch.zeros(4, 70, dtype=torch.bool))


def test_different_lengths_of_key_and_value_are_an_error(layout: Any) -> None:
    module = MultiheadAttention(12, 3, batch_first=True)
    q, k, v = (nested([torch.randn(n, 12) for n in s], layout) for s in (LENGTHS, SOURCES, LENGTHS))
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        module(q, k, v)


def test_an_empty_sequence_is_one_of_no_rows(layout: Any) -> None:
    module = MultiheadAttention(12, 3, batch_first=True).double()
    parts = leaves((3, 0, 5), 12)
    x = nested(parts, layout)
    out, _ = module(x, x, x, need_weights=False)
    assert [len(part) for part in out.unbind()] == [3, 0, 5]
    close(out.unbind()[2], module(*[parts[2]] * 3)[0])


def test_work_goes_by_real_tokens(layout: Any) -> None:
    module = MultiheadAttention(64, 4, batch_first=True)
    lengths = [1024, *[16] * 31]
    x = nested([torch.randn(n, 64) for n in lengths], layout)
    dense = torch.randn(len(lengths), max(lengths), 64)

    def seconds(x: torch.Tensor) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            out, _ = module(x, x, x, need_weights=False)
            sum(y.sum() for y in out.unbind()).backward()
            times.append(time.perf_counter() - start)
        return min(times)

    seconds(x)
    assert seconds(x) < seconds(dense) / 4
    assert math.isfinite(module.in_proj_weight.grad.sum())
