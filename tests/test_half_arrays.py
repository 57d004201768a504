"""Arrays of float16 and bfloat16: the engine reads and writes them where they lie."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import multihead as mh
from multihead import _native
from multihead.functional import scaled_dot_product_attention

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@np.errstate(invalid="ignore")  # numbers that signal
def bits(x: Any) -> Any:
    """NaN is one number here, whatever its payload, and zeros have no sign."""
    wide = x.astype(np.float32)
    return np.where(np.isnan(wide), 0xFFFF, np.where(wide == 0, 0, x.view(np.uint16)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 64])
def test_every_number_comes_and_goes_unchanged(isa: str, dtype: str, width: int) -> None:
    every = np.arange(65536 // width * width, dtype=np.uint16).view(DTYPES[dtype])
    value = every.reshape(-1, 1, 1, width)
    query = np.zeros((len(value), 1, 1, 2), DTYPES[dtype])
    out = scaled_dot_product_attention(query, query, value)
    assert out.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(bits(out), bits(value))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 64])
def test_results_are_rounded_to_nearest_even(
    isa: str, dtype: str, width: int, rng: np.random.Generator
) -> None:
    # the mean of two values, whose sum floats hold exactly where they are of like size
    first = rng.integers(0, 65536, (2000, 1, 1, width)).astype(np.uint16)
    near = (first + rng.integers(-3, 4, first.shape)).astype(np.uint16)
    value = np.concatenate([first, near], 2).view(DTYPES[dtype])
    query = np.zeros((2000, 1, 1, 2), DTYPES[dtype])
    key = np.zeros((2000, 1, 2, 2), DTYPES[dtype])
    with np.errstate(all="ignore"):
        mean = value.astype(np.float32).sum(2, keepdims=True, dtype=np.float32) * np.float32(0.5)
        expected = mean.astype(DTYPES[dtype])
    out = scaled_dot_product_attention(query, key, value)
    np.testing.assert_array_equal(bits(out), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lse_is_that_of_the_same_numbers_in_float32(
    isa: str, dtype: str, rng: np.random.Generator
) -> None:
    q, k, v = (rng.standard_normal((2, 3, 5, 4)).astype(DTYPES[dtype]) for _ in range(3))
    lowest = np.full((5, 5), np.finfo(np.float32).min, np.float32)
    for mask in (None, lowest, lowest / 4):
        out, lse = scaled_dot_product_attention(q, k, v, mask, return_lse=True)
        wide = [x.astype(np.float32) for x in (q, k, v)]
        expected, expected_lse = scaled_dot_product_attention(*wide, mask, return_lse=True)
        np.testing.assert_array_equal(lse, expected_lse)
        np.testing.assert_array_equal(bits(out), bits(expected.astype(DTYPES[dtype])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_widened_in_python(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> Any:
                seen.extend(arguments)
                return getattr(_native, name)(*arguments)

            return call

    layer = mh.MultiheadAttention(8, 2, dtype=dtype, seed=0)
    x = np.ones((5, 3, 8), DTYPES[dtype])
    layer.grads  # noqa: B018  # which are float32
    monkeypatch.setattr("multihead.layer._native", Spy())
    out, _ = layer(x, x, x)
    layer.backward(out)
    flat = [a for x in seen for a in (x if isinstance(x, tuple) else (x,))]
    sizes = {a.dtype.itemsize for a in flat if isinstance(a, np.ndarray)}
    grads = sum(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in flat)
    assert sizes == {2, 4}
    assert grads == len(layer.grads)
