"""Exported programs: PyTorch's operations alone, for every size, and where we are not."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim, export

from multihead.torch import MultiheadAttention, accelerate, scaled_dot_product_attention
from tolerance import assert_close

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert_close(found.detach().numpy(), expected.detach().numpy(), 1e-11)


def is_portable(program: torch.export.ExportedProgram) -> bool:
    return not any("multihead" in str(node.target) for node in program.graph.nodes)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tokens first": {"batch_first": False},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
    "own widths": {"kdim": 5, "vdim": 7, "bias": False},
}
CALLS: dict[str, dict[str, Any]] = {
    "no weights": {"need_weights": False},
    "weights": {},
    "each head": {"average_attn_weights": False},
    "causal": {"need_weights": False, "is_causal": True},
    "causal weights": {"is_causal": True},
}


class Called(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, q: Any, k: Any, v: Any, padding: Any, mask: Any) -> Any:
        out, weights = self.layer(q, k, v, padding, attn_mask=mask, **self.options)
        return (out,) if weights is None else (out, weights)


def masks(kind: str, n: int, heads: int, length: int, source: int) -> tuple[Any, Any]:
    """Padding and mask, with a query that sees nothing."""
    if kind == "none":
        return None, None
    padding = torch.arange(source) >= torch.tensor([[source], [2]])
    mask = torch.rand(n * heads, length, source) < 0.3
    mask[1, 2] = True
    if kind == "bool":
        return padding, mask
    mask[0, 3] = True
    floats = torch.randn(length, source, dtype=torch.float64)
    return padding, floats.masked_fill(mask[0], -math.inf)


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_program_computes_what_the_layer_does(configuration: str, call: str, mask: str) -> None:
    how = {"batch_first": True, "dtype": torch.float64} | CONFIGURATIONS[configuration]
    layer = MultiheadAttention(12, 3, **how).eval()
    n, length, source = 2, 5, 7
    inputs = [
        torch.randn(n, tokens, width, dtype=torch.float64)
        for tokens, width in ((length, 12), (source, layer.kdim), (source, layer.vdim))
    ]
    if not layer.batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    padding, added = masks(mask, n, 3, length, source)
    model = Called(layer, CALLS[call])
    program = export(model, (*inputs, padding, added))
    assert is_portable(program)
    if padding is not None:  # NaN in what is hidden stays there
        tokens = (1, slice(2, None)) if layer.batch_first else (slice(2, None), 1)
        for x in inputs[1:]:
            x[tokens] = math.nan
    expected = model(*inputs, padding, added)
    decomposed = program.run_decompositions()
    assert is_portable(decomposed)
    for made in (program, decomposed):
        for a, b in zip(made.module()(*inputs, padding, added), expected, strict=True):
            assert not b.isnan().any()
            close(a, b)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("call", ["no weights", "weights", "causal"])
def test_sizes_of_a_program_are_dynamic(call: str, strict: bool) -> None:
    layer = MultiheadAttention(12, 3, add_bias_kv=True, batch_first=True, dtype=torch.float64)
    model = Called(layer.eval(), CALLS[call])
    n, length, source = Dim("n"), Dim("length"), Dim("source")
    key = {0: n, 1: source}
    shapes = ({0: n, 1: length}, key, key, {0: n, 1: source}, None)

    def given(n: int, length: int, source: int) -> tuple[Any, ...]:
        q, k = (torch.randn(n, x, 12, dtype=torch.float64) for x in (length, source))
        return q, k, k.clone(), torch.rand(n, source) < 0.3, None

    program = export(model, given(2, 5, 7), dynamic_shapes=shapes, strict=strict)
    for sizes in ((2, 5, 7), (4, 21, 3), (3, 65, 130)):
        inputs = given(*sizes)
        for a, b in zip(program.module()(*inputs), model(*inputs), strict=True):
            close(a, b)


class Attend(torch.nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        return scaled_dot_product_attention(q, k, v, mask, **self.options)


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_alone(causal: bool, mask: str, kv_heads: int) -> None:
    q = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    k, v = (torch.randn(2, kv_heads, 7, w, dtype=torch.float64) for w in (4, 9))
    given: Any = None
    if mask != "none":
        given = torch.rand(2, 1, 5, 7) < 0.6
        given[0, 0, 3] = False
    if mask == "float":
        given = torch.randn(2, 1, 5, 7, dtype=torch.float64).masked_fill(~given, -math.inf)
    model = Attend({"is_causal": causal, "scale": 0.7, "enable_gqa": kv_heads < 6})
    program = export(model, (q, k, v, given))
    assert is_portable(program)
    assert "aten.scaled_dot_product_attention.default" in {
        str(x.target) for x in program.graph.nodes
    }
    close(program.module()(q, k, v, given), model(q, k, v, given))


def test_ours_may_take_the_place_of_pytorch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", scaled_dot_product_attention
    )
    q = torch.randn(2, 3, 5, 4)
    assert is_portable(export(Attend({}), (q, q, q)))


def test_dropout_stays_in_a_program() -> None:
    layer = MultiheadAttention(12, 3, dropout=0.4, batch_first=True)
    x = torch.randn(3, 9, 12)
    program = export(layer, (x, x, x)).module()
    first, second = program(x, x, x)[1], program(x, x, x)[1]
    assert not torch.equal(first, second)


@pytest.mark.timeout(120)
def test_a_saved_program_runs_where_we_are_not(tmp_path: Path) -> None:
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2).eval()
    accelerate(model)
    x = torch.randn(2, 5, 12)
    torch.export.save(export(model, (x,)), tmp_path / "model.pt2")
    torch.save((x, model(x)), tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['multihead'] = None\n"
        f"x, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"program = torch.export.load({str(tmp_path / 'model.pt2')!r}).module()\n"
        "assert torch.allclose(program(x), expected, atol=1e-5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
