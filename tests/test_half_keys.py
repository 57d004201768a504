"""Keys and values kept in half precision under float32 queries."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from tolerance import FORWARD, GRADIENT, assert_close, tolerance

HALF = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("queries", [1, 3, 70])
@pytest.mark.parametrize("masked", [False, True])
def test_they_are_those_of_the_same_numbers(
    isa: str, dtype: str, queries: int, masked: bool, rng: np.random.Generator
) -> None:
    q, g = (rng.standard_normal((2, 3, queries, n)).astype(np.float32) for n in (20, 33))
    k, v = (rng.standard_normal((2, 3, 601, n)).astype(HALF[dtype]) for n in (20, 33))
    mask = rng.random((queries, 601)) < 0.6 if masked else None
    wide = [x.astype(np.float64) for x in (q, k, v)]
    exact, right = scaled_dot_product_attention(*wide, mask, return_cache=True)
    out, lse, cache = scaled_dot_product_attention(
        q, k, v, mask, return_lse=True, return_cache=True
    )
    assert out.dtype == lse.dtype == np.float32
    assert_close(out, exact, tolerance(FORWARD, "float32"), "out")
    found = scaled_dot_product_attention_backward(g, cache)
    grads = scaled_dot_product_attention_backward(g.astype(np.float64), right)
    assert [x.dtype for x in found] == [q.dtype, k.dtype, v.dtype]
    for name, x, y, kind in zip("qkv", found, grads, ("float32", dtype, dtype), strict=True):
        assert_close(x, y, tolerance(GRADIENT, kind), name)


@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_hidden_may_be_no_number(isa: str, where: str, rng: np.random.Generator) -> None:
    q = rng.standard_normal((1, 2, 1, 16)).astype(np.float32)
    k, v = (rng.standard_normal((1, 2, 300, 16)).astype(HALF["bfloat16"]) for _ in "kv")
    mask = np.arange(300) != 7
    clean = [k.copy(), v.copy()]
    {"key": k, "value": v}[where][:, :, 7] = np.nan
    for x in clean:
        x[:, :, 7] = 0
    out = scaled_dot_product_attention(q, k, v, mask)
    expected = scaled_dot_product_attention(q, *clean, mask)
    assert_close(out, expected, tolerance(FORWARD, "float32"), "out")


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_other_mixtures_are_refused(kind: str, rng: np.random.Generator) -> None:
    q: Any = rng.standard_normal((1, 2, 5, 4)).astype(kind)
    k = q.astype(np.float32)
    with pytest.raises(TypeError, match=f"key: expected {kind}, got float32"):
        scaled_dot_product_attention(q, k, k)


def test_tensors_keep_their_dtypes() -> None:
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8, dtype=torch.bfloat16)
    out, cache = scaled_dot_product_attention(q, k, k, return_cache=True)
    d_q, d_k, _ = scaled_dot_product_attention_backward(torch.ones_like(out), cache)
    assert (out.dtype, d_q.dtype, d_k.dtype) == (torch.float32, torch.float32, torch.bfloat16)
