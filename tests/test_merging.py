"""Attention over parts of the keys, merged, is attention over all of them."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from multihead import reference
from multihead.functional import merge_attention, scaled_dot_product_attention
from tolerance import FORWARD, assert_close, tolerance


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cuts", [[1], [3, 40], [0, 64, 65]])
def test_merged_parts_agree_with_the_oracle(
    cuts: list[int], dtype: str, rng: np.random.Generator, isa: str
) -> None:
    q, k, v = (
        rng.standard_normal((2, 3, n, d)).astype(dtype) for n, d in ((70, 9), (81, 9), (81, 5))
    )
    mask = rng.random((2, 1, 70, 81)) < 0.6
    mask[0, 0, 7] = False  # sees nothing in any part
    mask[1, 0, 8, :50] = False
    edges = [0, *cuts, 81]
    parts = [
        scaled_dot_product_attention(q, k[:, :, a:b], v[:, :, a:b], mask[..., a:b], return_lse=True)
        for a, b in pairwise(edges)
    ]
    out, lse = merge_attention([x[0] for x in parts], [x[1] for x in parts])
    expected = reference.attention(q, k, v, ~mask)
    assert out.dtype == lse.dtype == dtype
    assert_close(out, expected.out, tolerance(FORWARD, dtype), "out")
    assert_close(lse, expected.lse, tolerance(FORWARD, dtype), "lse")


def test_scores_far_apart_and_half_precision(rng: np.random.Generator) -> None:
    outs = [rng.standard_normal((5, 3)).astype(ml_dtypes.bfloat16) for _ in range(3)]
    lses = [np.full(5, x, np.float32) for x in (-2e4, 3e4, -np.inf)]
    out, lse = merge_attention(outs, lses)
    assert out.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(out, outs[1])
    np.testing.assert_array_equal(lse, lses[1])


def test_what_does_not_fit_is_named() -> None:
    x, lse = np.ones((2, 5, 3), np.float32), np.ones((2, 5), np.float32)
    with pytest.raises(ValueError, match=r"lses: expected 1 arrays"):
        merge_attention([x], [])
    with pytest.raises(ValueError, match=r"outs\[1\]: expected \(2, 5, 3\)"):
        merge_attention([x, x[:1]], [lse, lse])
    with pytest.raises(ValueError, match=r"lses\[0\]: expected \(2, 5\), got \(5,\)"):
        merge_attention([x], [lse[0]])
    with pytest.raises(TypeError, match=r"outs\[1\]: expected float32"):
        merge_attention([x, x.astype(float)], [lse, lse])
