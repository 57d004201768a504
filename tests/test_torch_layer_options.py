"""The torch layer's options beyond PyTorch's: the NumPy layer's results, however computed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import multihead as mh
from layer_options import Drawn, draw
from multihead.torch import MultiheadAttention, restore
from tolerance import TORCH, assert_close, tolerance


def twin(drawn: Drawn) -> MultiheadAttention:
    """The same layer for torch."""
    made = {name: x for name, x in drawn.made.items() if name != "dropout"}
    dtype = getattr(torch, drawn.layer.dtype)
    ours = MultiheadAttention(**made, batch_first=True, dtype=dtype)
    state = drawn.layer.state_dict()
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    return ours


def leaves(drawn: Drawn) -> tuple[torch.Tensor, ...]:
    """The inputs as tensors with gradients; one where they are one."""
    query, key, value = drawn.inputs
    given = {id(x): torch.from_numpy(x).requires_grad_() for x in (query, key, value)}
    return tuple(given[id(x)] for x in (query, key, value))


def run(module: Any, drawn: Drawn) -> list[np.ndarray]:
    """Results and all gradients of one call, the inputs' first."""
    inputs = leaves(drawn)
    options = {
        name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        for name, x in drawn.options.items()
    }
    out, weights = module(*inputs, average_attn_weights=False, **options)
    wanted = [*dict.fromkeys(inputs), *module.parameters()]
    grads = torch.autograd.grad(out.sin().sum() + weights.square().sum(), wanted)
    return [x.detach().numpy() for x in (out, weights, *grads)]


def expected(drawn: Drawn) -> list[np.ndarray]:
    """The same from the NumPy layer."""
    layer = drawn.layer
    out, weights = layer(*drawn.inputs, average_attn_weights=False, **drawn.options)
    three = layer.backward(np.cos(out), 2 * weights)
    names = list(layer.parameters())
    if drawn.one_input:
        three = (sum(three),)
    return [out, weights, *three, *(layer.grads[name] for name in names)]


def check(module: Any, drawn: Drawn) -> None:
    bound = tolerance(TORCH, drawn.layer.dtype)
    for found, wanted in zip(run(module, drawn), expected(drawn), strict=True):
        assert_close(found, wanted, bound, str(drawn.made), scale=1e-2)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("draws", range(8))
def test_results_are_the_numpy_layers(draws: int, dtype: str, rng: np.random.Generator) -> None:
    drawn = draw(rng, dtype, 60, dropout=0.0)
    check(twin(drawn), drawn)


@pytest.mark.parametrize("draws", range(8))
def test_in_pytorchs_operations(draws: int, rng: np.random.Generator) -> None:
    drawn = draw(rng, "float64", 30, dropout=0.0)
    with torch.autograd.forward_ad.dual_level():
        check(twin(drawn), drawn)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_turned_in_pytorchs_operations(layout: Any) -> None:
    rope = mh.Rope(50.0, 4, layout)
    module = MultiheadAttention(12, 2, rope=rope, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    expected, _ = module(x, x, x)
    with torch.autograd.forward_ad.dual_level():
        torch.testing.assert_close(module(x, x, x)[0], expected)


@pytest.mark.parametrize("draws", range(4))
def test_compiled(draws: int, rng: np.random.Generator) -> None:
    drawn = draw(rng, "float64", 30, dropout=0.0)
    torch._dynamo.reset()
    check(torch.compile(twin(drawn), backend="aot_eager", fullgraph=True), drawn)


@pytest.mark.parametrize("draws", range(3))
def test_second_derivatives(draws: int, rng: np.random.Generator) -> None:
    drawn = draw(rng, "float64", 4, dropout=0.0)
    module = twin(drawn)
    x = torch.randn(1, 3, module.embed_dim, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 4, module.kdim, dtype=torch.float64)
    value = torch.randn(1, 4, module.vdim, dtype=torch.float64)
    torch.autograd.gradgradcheck(lambda q: module(q, key, value, need_weights=False)[0], (x,))


def test_jagged_batches(rng: np.random.Generator) -> None:
    module = MultiheadAttention(
        12, 4, num_kv_heads=2, head_dim=6, window=(9, 0), sinks=True, rope=mh.Rope(),
        alibi=True, batch_first=True, dtype=torch.float64,
    )  # fmt: skip
    parts = [torch.randn(n, 12, dtype=torch.float64) for n in (5, 1, 30)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    out, _ = module(x, x, x, need_weights=False)
    for part, found in zip(parts, out.unbind(), strict=True):
        torch.testing.assert_close(found, module(*[part] * 3, need_weights=False)[0])


def test_tokens_first_and_unbatched() -> None:
    module = MultiheadAttention(12, 3, rope=mh.Rope(), alibi=True, dtype=torch.float64)
    x = torch.randn(7, 2, 12, dtype=torch.float64)
    out, _ = module(x, x, x)
    torch.testing.assert_close(out[:, 1], module(*[x[:, 1]] * 3)[0])
    turned = copy.deepcopy(module)
    turned.batch_first = True
    y = x.transpose(0, 1)
    torch.testing.assert_close(out, turned(y, y, y)[0].transpose(0, 1))


def test_a_longer_text_is_compiled_once_more_or_not_at_all() -> None:
    module = MultiheadAttention(8, 2, rope=mh.Rope(), batch_first=True)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (5, 9, 300):
        x = torch.randn(1, length, 8)
        torch.testing.assert_close(compiled(x, x, x)[0], module(x, x, x)[0])


def test_a_dynamic_scaling_compiles_too() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
    module = MultiheadAttention(8, 2, rope=mh.Rope(scaling=scaling), batch_first=True)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager")
    for length in (5, 40):
        x = torch.randn(1, length, 8)
        torch.testing.assert_close(compiled(x, x, x)[0], module(x, x, x)[0])


def test_exported(tmp_path: Any) -> None:
    module = MultiheadAttention(
        12, 4, num_kv_heads=2, head_dim=6, window=3, softcap=2.0, rope=mh.Rope(), batch_first=True
    ).eval()
    x = torch.randn(2, 7, 12)
    program = torch.export.export(module, (x, x, x), {"need_weights": False})
    found = program.module()(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(found, module(x, x, x, need_weights=False)[0])


def test_under_autocast() -> None:
    module = MultiheadAttention(16, 4, num_kv_heads=2, rope=mh.Rope(), sinks=True, alibi=True)
    x = torch.randn(9, 2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = module(x, x, x)
    assert out.dtype == torch.bfloat16
    expected, _ = module(x, x, x)
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=3e-2)


def test_pickles_and_copies() -> None:
    module = MultiheadAttention(10, 4, num_kv_heads=2, head_dim=6, rope=mh.Rope(99.0), sinks=True)
    x = torch.randn(5, 10)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(x, x, x)[0], module(x, x, x)[0])
    assert "num_kv_heads=2, head_dim=6" in repr(module)


def test_a_layer_with_options_stays_ours() -> None:
    model = torch.nn.ModuleList(
        [MultiheadAttention(8, 2, window=3), MultiheadAttention(8, 2, num_kv_heads=1)]
    )
    assert restore(model) == 0
    assert all(isinstance(x, MultiheadAttention) for x in model)
    assert restore(torch.nn.ModuleList([MultiheadAttention(8, 2)])) == 1


def test_what_the_engine_does_not_take_is_an_error() -> None:
    module = MultiheadAttention(8, 2, num_kv_heads=1)
    x = torch.randn(3, 8, device="meta")
    with pytest.raises(ValueError, match=r"query: expected CPU tensors.*on meta"):
        module(x, x, x)
    with pytest.raises(ValueError, match="query: expected CPU tensors that fit the layer"):
        module(*[torch.randn(3, 9)] * 3)
