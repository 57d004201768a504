"""Whether a call gives the same bits again: with other threads, once more, on other kernel sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import multihead as mh
from multihead import _native
from multihead.cli.check.problem import Numbers
from multihead.cli.elements import widen
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

THREADS = (1, 2, 5)
INEXACT = ("baseline",)  # has no fused multiply-add
PROMISED = ("float32", "float64")  # alike on all other sets
SIZES = 2, 130, 72  # N, L and E: enough for threads to share


def hashes(isa: str, dtype: str) -> Iterator[tuple[int, str]]:
    """Give the hash of the same calls for each number of threads, the first one twice.

    Examples
    --------
    >>> from multihead import _native
    >>> len({found for _, found in hashes(_native.isa(), "float32")})
    1
    """
    calls = (_layer(dtype), _few_queries(dtype))
    before = _native.use_isa(isa), mh.get_num_threads()
    try:
        for threads in (THREADS[0], *THREADS):
            mh.set_num_threads(threads)
            sha = hashlib.sha256()
            for call in calls:
                for x in call():
                    sha.update(widen(x).tobytes())
            yield threads, sha.hexdigest()
    finally:
        _native.use_isa(before[0])
        mh.set_num_threads(before[1])


def _layer(dtype: str) -> Callable[[], list[Any]]:
    """Return a call: a step of training with causality and dropout."""
    numbers, (n, length, e) = Numbers(dtype, 13), SIZES
    layer, _ = numbers.layer({"embed_dim": e, "num_heads": 3, "dropout": 0.2})
    (x, _), (d_out, _) = numbers.normal(n, length, e), numbers.normal(n, length, e)
    state = layer.rng_state

    def call() -> list[Any]:
        layer.rng_state = state
        layer.zero_grad()
        out, _ = layer(x, x, x, need_weights=False, is_causal=True)
        return [out, *layer.backward(d_out), *(layer.grads[name] for name in sorted(layer.grads))]

    return call


def _few_queries(dtype: str) -> Callable[[], list[Any]]:
    """Return a call: three queries against many keys, which are split and merged."""
    numbers = Numbers(dtype, 14)
    (q, _), (d_out, _) = numbers.normal(1, 2, 3, 32), numbers.normal(1, 2, 3, 32)
    (k, _), (v, _) = numbers.normal(1, 2, 1100, 32), numbers.normal(1, 2, 1100, 32)

    def call() -> list[Any]:
        out, cache = scaled_dot_product_attention(q, k, v, return_cache=True)
        return [out, *scaled_dot_product_attention_backward(d_out, cache)]

    return call
