"""`multihead.jax` under JAX's strictest rules of promotion, which JAX's own tests are run with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402

from multihead.jax import dot_product_attention  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias-and-mask": {
        "bias": np.linspace(-1, 1, 2 * 4 * 7 * 9, dtype=np.float32).reshape(2, 4, 7, 9),
        "mask": np.tri(7, 9, 1, dtype=bool),
    },
    "lengths": {
        "query_seq_lengths": np.array([5, 7], np.int32),
        "key_value_seq_lengths": np.array([9, 4], np.int32),
        "return_residual": True,
    },
    "positions": {"query_offset": np.array([2, 0], np.int32), "is_causal": True},
    "from-the-end": {
        "query_offset": "end",
        "key_lengths": np.array([9, 8], np.int32),
        "window": (3, 1),
    },
    "scores": {
        "softcap": 5.0,
        "alibi_slopes": np.linspace(0.1, 0.8, 8, dtype=np.float32).reshape(2, 4),
        "sinks": np.array([0.1, -0.2, 0.3, -0.4], np.float32),
        "return_lse": True,
    },
    "dropout": {"dropout_p": 0.25, "dropout_key": jax.random.key(3)},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_nothing_is_promoted(options: dict[str, Any], dtype: str, rng: np.random.Generator) -> None:
    q, k, v = (
        jnp.asarray(rng.standard_normal(shape), dtype)
        for shape in ((2, 7, 4, 8), (2, 9, 2, 8), (2, 9, 2, 8))
    )

    def total(*inputs: Any) -> Any:
        found = jax.tree.leaves(dot_product_attention(*inputs, **options))
        return sum(jnp.where(jnp.isfinite(x), x, 0).astype(jnp.float32).sum() for x in found)

    def all_modes(*inputs: Any) -> Any:
        reverse = jax.grad(total, (0, 1, 2))
        return total(*inputs), reverse(*inputs), jax.jvp(reverse, inputs, inputs)[1]

    expected = jax.jit(all_modes)(q, k, v)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = jax.jit(all_modes)(q, k, v)
    for ours, before in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, before)
