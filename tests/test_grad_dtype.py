"""The dtype of a layer's `grads`: float32 of half parameters, or their own on request."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import multihead as mh

HALF = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

pytestmark = pytest.mark.parametrize("dtype", HALF)


def half_pair(dtype: str) -> list[mh.MultiheadAttention]:
    """Two layers of half precision that differ in the dtype of their gradients alone."""
    return [mh.MultiheadAttention(24, 3, dtype=dtype, grad_dtype=x, seed=1) for x in (None, dtype)]


def test_gradients_of_half_parameters_are_float32_or_their_own(
    dtype: str, rng: np.random.Generator
) -> None:
    wide, own = half_pair(dtype)
    assert (wide.grad_dtype, own.grad_dtype) == ("float32", dtype)
    assert mh.MultiheadAttention(8, 2, dtype=dtype, grad_dtype=np.float32).grad_dtype == "float32"
    x = rng.standard_normal((37, 2, 24)).astype(HALF[dtype])
    sums = {name: np.zeros(y.shape, np.float32) for name, y in own.grads.items()}
    for _ in range(3):
        wide.zero_grad()
        for layer in (wide, own):
            layer.backward(layer(x, x, x)[0])
        for name, grad in own.grads.items():
            # each backward adds its sum and rounds once
            total = sums[name] + wide.grads[name]
            sums[name] = total.astype(HALF[dtype]).astype(np.float32)
            assert grad.dtype == HALF[dtype]
            np.testing.assert_array_equal(grad.astype(np.float32), sums[name], err_msg=name)
    assert sum(y.nbytes for y in own.grads.values()) * 2 == sum(
        y.nbytes for y in wide.grads.values()
    )
    own.zero_grad()
    assert not any(y.any() for y in own.grads.values())


@pytest.mark.parametrize("own", [False, True])
def test_entries_of_grads_may_be_replaced(own: bool, dtype: str) -> None:
    layer = half_pair(dtype)[own]
    x = np.ones((5, 24), HALF[dtype])
    out, _ = layer(x, x, x)
    cache = layer.cache
    layer.backward(out, cache=cache)
    expected = {name: y.copy() for name, y in layer.grads.items()}
    kind = expected["out_proj.weight"].dtype
    room = np.zeros((24, 48), kind)
    layer.zero_grad()
    layer.grads["out_proj.weight"] = room[:, ::2]
    layer.backward(out, cache=cache)
    np.testing.assert_array_equal(room[:, ::2], expected["out_proj.weight"])
    assert not room[:, 1::2].any()
    layer.zero_grad()
    layer.grads["out_proj.weight"] = np.zeros((24, 24), kind).view(np.recarray)
    layer.backward(out, cache=cache)
    np.testing.assert_array_equal(layer.grads["out_proj.weight"], expected["out_proj.weight"])
    other = np.dtype(np.float32) if own else HALF[dtype]
    layer.grads["out_proj.weight"] = np.zeros((24, 24), other)
    said = rf"^grads\['out_proj\.weight'\]: expected {layer.grad_dtype}, got {other.name}"
    with pytest.raises(TypeError, match=said):
        layer.backward(out, cache=cache)
    layer.grads["out_proj.weight"] = np.zeros((24, 12), kind)
    with pytest.raises(ValueError, match=r"\(24, 24\), got \(24, 12\)"):
        layer.backward(out, cache=cache)


@pytest.mark.parametrize("own", [False, True])
def test_copies_keep_the_dtype_of_gradients(own: bool, dtype: str, tmp_path: Path) -> None:
    layer = half_pair(dtype)[own]
    x = np.ones((5, 24), HALF[dtype])
    layer.backward(layer(x, x, x)[0])
    mh.checkpoint.save(layer, tmp_path / "layer.safetensors")
    loaded = mh.checkpoint.load(tmp_path / "layer.safetensors")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert other.grad_dtype == layer.grad_dtype
        assert repr(other) == repr(layer)
        assert other.options() == layer.options()
        if other is not loaded:
            for name, grad in layer.grads.items():
                np.testing.assert_array_equal(other.grads[name], grad)
    assert (f"grad_dtype={dtype!r}" in repr(layer)) == own


def test_no_other_dtype_of_gradients(dtype: str) -> None:
    other = ({"float16", "bfloat16"} - {dtype}).pop()
    for wrong in (other, "float64"):
        said = f"^grad_dtype: expected float32 or {dtype}, got {wrong}$"
        with pytest.raises(TypeError, match=said):
            mh.MultiheadAttention(8, 2, dtype=dtype, grad_dtype=wrong)
    with pytest.raises(TypeError, match=f"^grad_dtype: expected float32, got {dtype}$"):
        mh.MultiheadAttention(8, 2, grad_dtype=dtype)
    with pytest.raises(TypeError, match=f"^grad_dtype: expected float32 or {dtype}, got int8$"):
        mh.MultiheadAttention(8, 2, dtype=dtype, grad_dtype="int8")
    with pytest.raises(TypeError, match=r"^grad_dtype: expected float64, got float32$"):
        mh.MultiheadAttention(8, 2, dtype="float64", grad_dtype="float32")
    with pytest.raises(AttributeError, match="grad_dtype"):
        mh.MultiheadAttention(8, 2).grad_dtype = dtype  # type: ignore[misc]


def test_without_ml_dtypes_gradients_are_bits(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, _ = half_pair(dtype)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    _, own = half_pair(dtype)
    x = torch.linspace(-1, 1, 5 * 24).view(5, 24).to(getattr(torch, dtype))
    for layer in (wide, own):
        layer.backward(layer(x, x, x)[0])
    for name, grad in own.grads.items():
        assert grad.dtype == (np.float16 if dtype == "float16" else np.uint16)
        expected = wide.grads[name].astype(HALF[dtype])
        np.testing.assert_array_equal(grad.view(np.uint16), expected.view(np.uint16))
    own.grads["out_proj.bias"] = np.zeros(24, own.grads["out_proj.bias"].dtype)
    own.backward(own(x, x, x)[0])
    assert own.grads["out_proj.bias"].any()
