"""Which attention weights dropout keeps, in JAX's operations: the engine's random function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


def keep_mask(seed: Any, shape: Sequence[int], p: float, keys: Any = None) -> tuple[Any, float]:
    """Return which of the weights (N, H, L, S) stay, and their factor.

    See `multihead.reference.dropout`; all in 32 bits, since JAX may have no longer integers.

    Parameters
    ----------
    seed : array of uint32 (2,)
        The upper half first.
    shape : sequence of int
    p : float
    keys : array of uint32 (S,), optional
        Where the keys are, if not at 0, 1, 2...
    """
    if p >= 1.0:
        return jnp.zeros(shape, bool), 0.0
    b, h, i, j = (
        jnp.arange(n, dtype=jnp.uint32).reshape([-1 if k == at else 1 for k in range(4)])
        for at, n in enumerate(shape)
    )
    j = j if keys is None else keys
    none = jnp.zeros((), jnp.uint32)
    key = _philox((none, none, _word(0x6D756C74), _word(0x68656164)), (seed[1], seed[0]))
    low, high = _philox((i, none, h, b), key)
    x = low ^ (j >> 1) * _word(0x9E3779B9)
    x ^= x >> 16
    x *= _word(0x21F0AAAD)
    x ^= x >> 15
    x += high
    x *= _word(0xD35A2D97)
    x ^= x >> 15
    threshold = min(int(p * 65536 + 0.5), 65535)
    keep = (x >> _word(16) * (j & 1)) & _word(0xFFFF)
    return keep >= threshold, 65536 / (65536 - threshold)


def _word(x: int) -> Any:
    return jnp.asarray(np.uint32(x))


def _philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, Any]:
    """First two words of Philox4x32-10."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a_high, a_low = _product(c0, _word(0xD2511F53))
        b_high, b_low = _product(c2, _word(0xCD9E8D57))
        c0, c1, c2, c3 = b_high ^ c1 ^ k0, b_low, a_high ^ c3 ^ k1, a_low
        k0, k1 = k0 + _word(0x9E3779B9), k1 + _word(0xBB67AE85)
    return c0, c1


def _product(a: Any, b: Any) -> tuple[Any, Any]:
    """Return the halves of a product of 64 bits, the upper first."""
    a0, a1, b0, b1 = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    low, cross = a0 * b0, a1 * b0
    middle = (low >> 16) + (cross & 0xFFFF) + a0 * b1  # below 2**32
    return a1 * b1 + (cross >> 16) + (middle >> 16), a * b
