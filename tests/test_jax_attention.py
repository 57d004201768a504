"""`multihead.jax.dot_product_attention` has NumPy's bits."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from multihead import functional  # noqa: E402
from multihead.jax import dot_product_attention  # noqa: E402


def test_output_is_that_of_numpy_to_the_bit() -> None:
    rng = np.random.default_rng(11)
    q, k, v = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in ((3, 17, 4, 8), (3, 23, 2, 8), (3, 23, 2, 5))
    )
    ours = jax.jit(lambda *x: dot_product_attention(*x, is_causal=True))(q, k, v)
    heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
    theirs = functional.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)
    np.testing.assert_array_equal(ours, theirs.swapaxes(1, 2))
