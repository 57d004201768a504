"""Lengths of sequences, and where their queries stand."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from multihead.checks import dims, integer, wrong, wrong_type


def integers(name: str, x: Any, n: int) -> Any:
    """Take in an integer for each of n sequences."""
    if x is None:
        return None
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise wrong_type(name, "integers", x.dtype.name)
    if x.shape != (n,):
        raise wrong(name, dims(n), x.shape)
    return x if x.dtype in (jnp.int32, jnp.int64) else x.astype(jnp.int32)


def positions(offset: Any, n: int, queries: int, keys: Any) -> Any:
    """Return where the first query of each sequence stands, (1) or (N); None: on its first key."""
    if isinstance(offset, str):
        if offset != "end":
            raise wrong("query_offset", 'integers or "end"', repr(offset))
        return jnp.atleast_1d(jnp.asarray(keys, jnp.int32)) - queries
    if isinstance(offset, int | np.integer) and not isinstance(offset, bool):
        first = integer("query_offset", offset, -(2**31), 2**31)
        return jnp.full(1, first, jnp.int32) if first else None
    array = jnp.asarray(offset)
    return integers("query_offset", array[None] if array.ndim == 0 else array, array.size or n)
