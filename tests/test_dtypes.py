"""float16 and bfloat16, NumPy and DLPack: what goes in comes out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import multihead as mh
from cases import Call as DenseCall
from cases import Construction, Step, make_call, make_layer, oracle_step
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, tolerance

NUMPY = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
HALF = ("float16", "bfloat16")


def half_problem(
    dtype: str, rng: np.random.Generator, layout: str = "batch first"
) -> tuple[mh.MultiheadAttention, DenseCall, Step]:
    """A layer and a call in a dtype, and the oracle's step on the same rounded numbers."""
    how = Construction(24, 3, dropout=0.2, add_bias_kv=True, layout=layout, dtype="float32")
    plain = make_layer(how, rng)
    call = make_call(how, rng, 2, 37, 41, mask="float 2-D", padding="bool", weights="average")
    layer = mh.MultiheadAttention(
        24,
        3,
        dropout=0.2,
        add_bias_kv=True,
        batch_first=layout == "batch first",
        dtype=dtype,
        seed=1,
    )
    layer.load_state_dict(plain.state_dict())
    kind = NUMPY[dtype]
    options = dict(call.options)
    options["attn_mask"] = options["attn_mask"].astype(kind)
    tensors = (x.astype(kind) for x in (call.query, call.key, call.value, call.d_out))
    rounded = DenseCall(*tensors, options, call.d_weights.astype(kind))
    params = {name: x.astype(np.float64) for name, x in layer.state_dict().items()}
    wide = DenseCall(
        *(x.astype(np.float64) for x in (rounded.query, rounded.key, rounded.value, rounded.d_out)),
        options | {"attn_mask": options["attn_mask"].astype(np.float64)},
        rounded.d_weights.astype(np.float64),
    )
    return layer, rounded, oracle_step(params, how, wide, layer.rng_state)


def run(layer: mh.MultiheadAttention, call: DenseCall, convert: Any = lambda x: x) -> Step:
    """One step with every array converted to another kind first."""
    options = {
        name: convert(x) if isinstance(x, np.ndarray) else x for name, x in call.options.items()
    }
    inputs = [convert(x) for x in (call.query, call.key, call.value)]
    out, weights = layer(*inputs, **options)
    *grads, d_mask, _ = layer.backward(
        convert(call.d_out), convert(call.d_weights), need_mask_grad=True
    )
    names = ("query", "key", "value", "attn_mask")
    return Step(out, weights, dict(zip(names, (*grads, d_mask), strict=True)) | layer.grads)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("layout", ["batch first", "sequence first"])
def test_half_precision_numpy(layout: str, dtype: str, rng: np.random.Generator) -> None:
    layer, call, expected = half_problem(dtype, rng, layout)
    step = run(layer, call)
    for name in ("query", "key", "value", "attn_mask"):
        assert step.grads[name].dtype == NUMPY[dtype], name
    assert step.out.dtype == step.weights.dtype == NUMPY[dtype]
    assert_close(step.out, expected.out, tolerance(FORWARD, dtype), "out")
    assert_close(step.weights, expected.weights, tolerance(FORWARD, dtype), "weights")
    assert_all_close(step.grads, expected.grads, tolerance(GRADIENT, dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_gradients_of_parameters_add_up_in_float32(
    isa: str, dtype: str, rng: np.random.Generator
) -> None:
    layer, call, expected = half_problem(dtype, rng)
    run(layer, call)
    for name, grad in layer.grads.items():
        assert grad.dtype == np.float32
        assert_close(grad, expected.grads[name], tolerance(GRADIENT, "float32"), name)


def to_torch(x: np.ndarray) -> torch.Tensor:
    if x.dtype == NUMPY["bfloat16"]:
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def bits(x: Any) -> np.ndarray:
    """The bits of an array of any kind."""
    if isinstance(x, torch.Tensor):
        x = x.view({2: torch.uint16, 4: torch.uint32, 8: torch.uint64}[x.element_size()]).numpy()
        return np.ascontiguousarray(x)
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


@pytest.mark.parametrize("dtype", NUMPY)
def test_tensors_come_back_as_tensors(dtype: str, rng: np.random.Generator) -> None:
    layer, call, _ = half_problem(dtype, rng)
    state = layer.rng_state
    expected = run(layer, call)
    layer.zero_grad()
    layer.rng_state = state
    step = run(layer, call, to_torch)
    for x in (
        step.out,
        step.weights,
        *(step.grads[n] for n in ("query", "key", "value", "attn_mask")),
    ):
        assert isinstance(x, torch.Tensor)
        assert x.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(bits(step.out), bits(expected.out))
    np.testing.assert_array_equal(bits(step.weights), bits(expected.weights))
    for name in ("query", "key", "value", "attn_mask"):
        np.testing.assert_array_equal(bits(step.grads[name]), bits(expected.grads[name]))


@pytest.mark.parametrize("dtype", NUMPY)
def test_strided_tensors(dtype: str, rng: np.random.Generator) -> None:
    layer, call, _ = half_problem(dtype, rng)
    state = layer.rng_state
    expected = run(layer, call)
    layer.zero_grad()
    layer.rng_state = state

    def strided(x: np.ndarray) -> torch.Tensor:
        flipped = np.ascontiguousarray(x.swapaxes(-1, -2))
        return to_torch(flipped).transpose(-1, -2)

    step = run(layer, call, strided)
    np.testing.assert_array_equal(bits(step.out), bits(expected.out))
    np.testing.assert_array_equal(bits(step.grads["query"]), bits(expected.grads["query"]))


@pytest.mark.parametrize("dtype", NUMPY)
def test_out_tensors_are_written(dtype: str, rng: np.random.Generator) -> None:
    layer, call, _ = half_problem(dtype, rng)
    options = {k: to_torch(x) if isinstance(x, np.ndarray) else x for k, x in call.options.items()}
    query, key, value, d_out = (to_torch(x) for x in (call.query, call.key, call.value, call.d_out))
    layer(query, key, value, **options)
    cache = layer.cache
    expected = layer.backward(d_out, cache=cache)
    out = tuple(torch.full_like(x, float("nan")) for x in (query, key, value))
    given = layer.backward(d_out, cache=cache, out=out)
    for a, b, c in zip(given, out, expected, strict=True):
        assert a is b
        assert torch.equal(b, c)


@pytest.mark.parametrize("dtype", NUMPY)
def test_state_dicts_of_torch_load(dtype: str) -> None:
    module = torch.nn.MultiheadAttention(12, 3, dtype=getattr(torch, dtype))
    layer = mh.MultiheadAttention(12, 3, dtype=getattr(torch, dtype))
    layer.load_state_dict(module.state_dict())
    for name, x in layer.state_dict().items():
        np.testing.assert_array_equal(bits(x), bits(module.state_dict()[name].detach()))


@pytest.mark.parametrize("dtype", HALF)
def test_ragged_half_precision(dtype: str, rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(12, 3, dtype=dtype, seed=1)
    parts = [rng.standard_normal((n, 12)).astype(NUMPY[dtype]) for n in (3, 0, 40)]
    batch = mh.Ragged.from_list(parts)
    out, weights = layer(batch, batch, batch)
    assert out.values.dtype == weights[0].dtype == NUMPY[dtype]
    grads = layer.backward(out)
    assert all(grad.values.dtype == NUMPY[dtype] for grad in grads)
    alone, _ = layer(parts[2], parts[2], parts[2])
    np.testing.assert_array_equal(bits(out.to_list()[2]), bits(alone))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_returned_tensor_outlives_the_layer(dtype: str) -> None:
    x = torch.ones((4, 12), dtype=getattr(torch, dtype))
    out, _ = mh.MultiheadAttention(12, 3, dtype=dtype, seed=1)(x, x, x)
    kept = out.clone()
    for _ in range(50):
        mh.MultiheadAttention(12, 3, dtype=dtype, seed=2)(x, x, x)
    assert torch.equal(out, kept)
