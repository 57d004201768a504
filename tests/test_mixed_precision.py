"""Half inputs of a float32 layer: computed in their dtype, with float32 gradients of parameters."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import multihead as mh
from cases import Call, Construction, Step, make_call, make_layer, oracle_step
from multihead import _native
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, tolerance

HALF = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
INPUTS = ("query", "key", "value")

pytestmark = pytest.mark.parametrize("dtype", HALF)


def bound(kind: str, dtype: str) -> float:
    """On the way to a result numbers are rounded more than once: q, k, v, probabilities."""
    return 2 * tolerance(kind, HALF[dtype])


def rounded(x: Any, dtype: str) -> Any:
    """Floats that the half dtype holds; other arrays as they are."""
    is_float = isinstance(x, np.ndarray) and x.dtype.kind == "f"
    return x.astype(HALF[dtype]).astype(np.float32) if is_float else x


def problem(dtype: str, rng: np.random.Generator, layout: str = "batch first") -> Any:
    """A layer of float32, a call, and the oracle's step, of numbers that the half dtype holds."""
    how = Construction(24, 3, dropout=0.2, add_bias_kv=True, layout=layout, dtype="float32")
    layer = make_layer(how, rng)
    layer.load_state_dict({name: rounded(x, dtype) for name, x in layer.state_dict().items()})
    drawn = make_call(how, rng, 2, 37, 41, mask="float 2-D", padding="bool", weights="average")
    tensors = (drawn.query, drawn.key, drawn.value, drawn.d_out)
    options = {name: rounded(x, dtype) for name, x in drawn.options.items()}
    call = Call(*(rounded(x, dtype) for x in tensors), options, rounded(drawn.d_weights, dtype))
    params = {name: x.astype(np.float64) for name, x in layer.state_dict().items()}
    return layer, call, oracle_step(params, how, call, layer.rng_state)


def to_torch(x: np.ndarray) -> torch.Tensor:
    if x.dtype == HALF["bfloat16"]:
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def numbers(x: Any) -> np.ndarray:
    """An array of any kind as NumPy's float64."""
    return x.double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)


def run(layer: mh.MultiheadAttention, call: Call, dtype: str, convert: Any = np.asarray) -> Step:
    """One step of half inputs, every one of them converted to another kind first."""
    query, key, value, d_out, d_weights = (
        convert(x.astype(HALF[dtype]))
        for x in (call.query, call.key, call.value, call.d_out, call.d_weights)
    )
    out, weights = layer(query, key, value, **call.options)
    *grads, d_mask, _ = layer.backward(d_out, d_weights, need_mask_grad=True)
    for x in (out, weights, *grads):
        assert type(x) is type(query)
        assert x.dtype == query.dtype
    assert d_mask.dtype == np.float32
    found = dict(zip((*INPUTS, "attn_mask"), (*grads, d_mask), strict=True)) | layer.grads
    found = {name: numbers(x) for name, x in found.items()}
    return Step(numbers(out), numbers(weights), found)


@pytest.mark.parametrize("convert", [np.asarray, to_torch], ids=["NumPy", "DLPack"])
@pytest.mark.parametrize("layout", ["batch first", "sequence first"])
def test_half_inputs_of_a_float32_layer(
    layout: str, convert: Any, dtype: str, rng: np.random.Generator
) -> None:
    layer, call, expected = problem(dtype, rng, layout)
    found = run(layer, call, dtype, convert)
    assert all(x.dtype == np.float32 for x in layer.grads.values())
    assert_close(found.out, expected.out, bound(FORWARD, dtype), "out")
    assert_close(found.weights, expected.weights, bound(FORWARD, dtype), "weights")
    assert_all_close(found.grads, expected.grads, bound(GRADIENT, dtype), sizes=expected.sizes)
    for name, x in layer.grads.items():
        assert not np.array_equal(x, rounded(x, dtype)), name


def test_half_inputs_reach_the_engine_as_they_lie(
    dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, call, _ = problem(dtype, rng)
    seen: list[Any] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return lambda *given: (seen.append(given), getattr(_native, name)(*given))[1]

    monkeypatch.setattr("multihead.layer._native", Spy())
    query = call.query.astype(HALF[dtype])
    out, _ = layer(query, query, query)
    layer.backward(out)
    for options, tensors, *_ in seen:
        assert options.dtype == dtype
        assert tensors.query.ctypes.data == query.ctypes.data
        assert tensors.in_weight.ctypes.data == layer.in_proj_weight.ctypes.data
        assert tensors.in_weight.dtype == np.float32
    assert seen[1][-1].in_weight.ctypes.data == layer.grads["in_proj_weight"].ctypes.data


def test_half_ragged_inputs_of_a_float32_layer(dtype: str, rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(12, 3, seed=1)
    parts = [rng.standard_normal((n, 12)).astype(HALF[dtype]) for n in (3, 0, 40)]
    batch = mh.Ragged.from_list(parts)
    out, weights = layer(batch, batch, batch)
    assert out.values.dtype == weights[0].dtype == HALF[dtype]
    assert all(grad.values.dtype == HALF[dtype] for grad in layer.backward(out))
    alone, _ = layer(parts[2], parts[2], parts[2])
    np.testing.assert_array_equal(out.to_list()[2].view(np.uint16), alone.view(np.uint16))


def test_out_is_of_the_inputs_dtype(dtype: str, rng: np.random.Generator) -> None:
    layer, call, _ = problem(dtype, rng)
    x = call.query.astype(HALF[dtype])
    given, _ = layer(x, x, x)
    cache = layer.cache
    expected = layer.backward(given, cache=cache)
    out = tuple(np.empty_like(x) for _ in range(3))
    assert layer.backward(given, cache=cache, out=out) is out
    for a, b in zip(out, expected, strict=True):
        np.testing.assert_array_equal(a.view(np.uint16), b.view(np.uint16))
    shared = np.empty_like(x)
    layer.backward(given, cache=cache, out=(shared,) * 3)
    total = sum(numbers(y) for y in expected)
    assert_close(numbers(shared), total, bound(GRADIENT, dtype), "the sum")
    wide = np.empty(x.shape, np.float32)
    with pytest.raises(TypeError, match=rf"^out\[0\]: expected {dtype}, got float32"):
        layer.backward(given, cache=cache, out=(wide, None, None))


def test_what_does_not_go_together(dtype: str) -> None:
    x = np.ones((5, 8), np.float32)
    half = x.astype(HALF[dtype])
    layer = mh.MultiheadAttention(8, 2, seed=0)
    with pytest.raises(TypeError, match=rf"^key: expected {dtype}, got float32 \(key\.astype\("):
        layer(half, x, x)
    with pytest.raises(TypeError, match=rf"^value: expected float32, got {dtype} \(value\.astype"):
        layer(x, x, half)
    layer(half, half, half)
    with pytest.raises(TypeError, match=rf"^d_out: expected {dtype}, got float32"):
        layer.backward(x)
    for other in ({"float16", "bfloat16"} - {dtype}).pop(), "float64":
        with pytest.raises(TypeError, match=f"^query: expected {other}, got {dtype}"):
            mh.MultiheadAttention(8, 2, dtype=other)(half, half, half)
