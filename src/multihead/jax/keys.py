"""JAX's keys as the engine's seeds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from multihead.checks import wrong, wrong_type


def seed_of(key: Any) -> Any:
    """Return the two words of a key, the upper half of the seed first.

    Keys of more words are folded into two.
    """
    if key is None:
        raise wrong(
            "dropout_key", "a key of JAX's where dropout_p is not 0 (jax.random.key(0))", key
        )
    if hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    words = jnp.asarray(key)
    if words.dtype != jnp.uint32:
        raise wrong_type("dropout_key", "a key of JAX's", words.dtype.name)
    if words.ndim != 1 or words.shape[0] < 2 or words.shape[0] % 2:
        raise wrong("dropout_key", "one key", f"words of shape {words.shape}")
    pairs = words.reshape(-1, 2)
    seed = pairs[0]
    for i in range(1, pairs.shape[0]):
        seed = seed ^ pairs[i]
    return seed
