"""Which attention weights dropout keeps: a counter-based random function of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words: TypeAlias = NDArray[np.uint64]

BIAS_KEY = 0xFFFFFFFE  # the position of bias_k
ZERO_KEY = 0xFFFFFFFF  # the position of the zero row


def philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Words, Words]:
    """First two words of Philox4x32-10 (Salmon et al. 2011), vectorised over the counter."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ k0,
            b & low,
            (a >> np.uint64(32)) ^ c3 ^ k1,
            a & low,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1


def dropout_mask(
    seed: int,
    counter: int,
    batch: ArrayLike,
    heads: ArrayLike,
    queries: ArrayLike,
    keys: ArrayLike,
    p: float,
) -> tuple[NDArray[np.bool_], float]:
    """Which weights survive dropout: a pure function of the call and of the positions.

    Parameters
    ----------
    seed, counter : int
        The state of the generator, each 64 bits; counter grows by one a call.
    batch, heads, queries, keys : int or 1-D array_like of int
        Positions along each axis. Keys 0xFFFFFFFE and 0xFFFFFFFF stand for bias_k and the zero row.
    p : float
        Probability of dropping, rounded to a multiple of 1/65536.

    Returns
    -------
    keep : ndarray of bool (N, H, L, S)
    scale : float
        The factor of the survivors, 1 / (1 - p) for the rounded p.

    Examples
    --------
    >>> keep, scale = dropout_mask(7, 0, [0], [0, 1], range(100), range(100), 0.25)
    >>> keep.shape, round(float(keep.mean()), 2), round(scale, 3)
    ((1, 2, 100, 100), 0.75, 1.333)
    >>> part, _ = dropout_mask(7, 0, [0], [1], [42], range(100), 0.25)
    >>> bool((part[0, 0, 0] == keep[0, 1, 42]).all())
    True
    """
    b, h, i, j = (
        np.atleast_1d(np.asarray(x)).astype(np.uint64) for x in (batch, heads, queries, keys)
    )
    b, h, i = b[:, None, None, None], h[:, None, None], i[:, None]
    if p >= 1.0:
        return np.zeros(np.broadcast_shapes(b.shape, h.shape, i.shape, j.shape), bool), 0.0
    low = 0xFFFFFFFF
    call = (counter & low, counter >> 32 & low, 0x6D756C74, 0x68656164)
    key = philox(call, (seed & low, seed >> 32 & low))
    row_low, row_high = (
        w.astype(np.uint32) for w in philox((i & np.uint64(low), i >> np.uint64(32), h, b), key)
    )
    pair = j.astype(np.uint32) >> np.uint32(1)
    x = row_low ^ pair * np.uint32(0x9E3779B9)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x ^= x >> np.uint32(15)
    x += row_high
    x *= np.uint32(0xD35A2D97)
    x ^= x >> np.uint32(15)
    half = np.uint32(16) * (j.astype(np.uint32) & np.uint32(1))
    threshold = min(int(p * 65536 + 0.5), 65535)
    keep = (x >> half & np.uint32(0xFFFF)) >= threshold
    return keep, 65536 / (65536 - threshold)
