"""Sizes that no memory holds, under a real limit of memory: run with the name of a group of cases.

Arrays are views that repeat one element, so that their shapes cost nothing. Each case prints its
name and what came of it, which must be an error that says what is too large, at once.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import multihead as mh
from multihead import functional

Case = tuple[str, Callable[[], Any]]
SIZES = {"2^31": 2**31, "2^32 + 1": 2**32 + 1, "2^40": 2**40, "2^56": 2**56}
ROOM = 512 << 20  # bytes that a case may take
attend = functional.scaled_dot_product_attention


def same(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """An array of one element in each place."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))


def layer(**options: Any) -> mh.MultiheadAttention:
    return mh.MultiheadAttention(4, 2, batch_first=True, seed=0, **options)


def of_layer(n: int) -> Iterator[Case]:
    made, one = layer(), same(1, 1, 4)
    half = {"key_padding_mask": same(1, n, dtype=bool), "need_weights": False}

    def call(query: Any, key: Any, **options: Any) -> Callable[[], Any]:
        options = {"need_weights": False} | options
        return lambda: made(query, key, key, **options)

    yield "sequences", call(same(n, 1, 4), same(n, 1, 4))
    yield "sequences without queries", call(same(n, 0, 4), same(n, 1, 4))
    yield "queries", call(same(1, n, 4), one)
    yield "keys", call(one, same(1, n, 4))
    yield "keys and weights", call(one, same(1, n, 4), need_weights=True)
    yield "keys and padding", call(one, same(1, n, 4), **half)
    side = 2**20
    mask = {"attn_mask": same(n // side, side, dtype=bool), "need_weights": True}
    yield "scores", call(same(1, n // side, 4), same(1, side, 4), **mask)
    yield "cached rows", lambda: layer().new_kv_cache(1, n)
    yield "cached sequences", lambda: layer().new_kv_cache(n, n)
    yield "width", lambda: mh.MultiheadAttention(n, 1)
    yield "heads", lambda: mh.MultiheadAttention(n, n)
    yield "width of keys", lambda: mh.MultiheadAttention(4, 2, kdim=n)
    yield "width of heads", lambda: mh.MultiheadAttention(4, 2, head_dim=n)


def of_functional(n: int) -> Iterator[Case]:
    one = same(1, 1, 1, 1)

    def call(query: Any, key: Any, value: Any, **options: Any) -> Callable[[], Any]:
        return lambda: attend(query, key, value, **options)

    yield "sequences", call(*[same(n, 1, 1, 1)] * 3)
    yield "sequences without values", call(same(n, 1, 1, 1), same(n, 1, 1, 1), same(n, 1, 1, 0))
    yield "heads", call(*[same(1, n, 1, 1)] * 3)
    yield "heads of queries", call(same(1, n, 1, 1), one, one, enable_gqa=True)
    yield "queries", call(same(1, 1, n, 1), one, one)
    yield "queries and a cache", call(same(1, 1, n, 1), one, one, return_cache=True)
    yield "keys", call(one, same(1, 1, n, 1), same(1, 1, n, 1))
    yield "keys of many queries", call(same(1, 1, 70, 1), same(1, 1, n, 1), same(1, 1, n, 1))
    yield "no queries", call(same(1, 1, 0, 1), same(1, 1, n, 1), same(1, 1, n, 1))
    yield "features", call(same(1, 1, 1, n), same(1, 1, 1, n), one)
    yield "features of values", call(one, one, same(1, 1, 1, n))
    few, none = same(n, 2**4, 0, 1), same(2**31 - 1, 2**15, 1023, 0)
    yield "heads without tokens", call(few, few, few)
    yield "the product", call(same(*none.shape[:3], 1), same(*none.shape[:3], 1), none)
    ragged = mh.Ragged(same(n, 1, 1), [0, n])
    yield "ragged", call(ragged, ragged, ragged)
    yield "parts", lambda: functional.merge_attention([same(1, 1, n, 1)] * 2, [same(1, 1, n)] * 2)
    yield "padded", lambda: mh.Ragged(same(n, 4), [0, 1, n]).to_padded()


def of_torch(n: int) -> Iterator[Case]:
    import torch

    import multihead.torch as mht

    made, one = mht.MultiheadAttention(4, 2, batch_first=True), torch.zeros(1)
    attend = mht.scaled_dot_product_attention

    def call(made: Any, query: Any, key: Any, **options: Any) -> Callable[[], Any]:
        return lambda: made(one.expand(query), one.expand(key), one.expand(key), **options)

    off = {"need_weights": False}
    yield "module: sequences", call(made, (n, 1, 4), (n, 1, 4), **off)
    yield "module: queries", call(made, (1, n, 4), (1, 1, 4), **off)
    yield "module: keys", call(made, (1, 1, 4), (1, n, 4), **off)
    yield "module: keys and weights", call(made, (1, 1, 4), (1, n, 4))
    yield "module: cached rows", lambda: made.eval().new_kv_cache(1, n)
    yield "sequences", call(attend, (n, 1, 1, 1), (n, 1, 1, 1))
    yield "heads", call(attend, (1, n, 1, 1), (1, n, 1, 1))
    yield "queries", call(attend, (1, 1, n, 1), (1, 1, 1, 1))
    yield "keys", call(attend, (1, 1, 1, 1), (1, 1, n, 1))
    yield "keys of many queries", call(attend, (1, 1, 70, 1), (1, 1, n, 1))


GROUPS = {"layer": of_layer, "functional": of_functional, "torch": of_torch}


def limit(room: int) -> None:
    """Let this process take so much address space more."""
    with open("/proc/self/statm") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))


def main(name: str) -> None:
    """Run a group of cases for each size."""
    cases = [(size, *case) for size, n in SIZES.items() for case in GROUPS[name](n)]
    limit(ROOM)
    for size, what, call in cases:
        start = time.process_time()
        try:
            call()
        except (MemoryError, ValueError, RuntimeError) as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            said = "no error"
        print(f"{what} of {size}|{time.process_time() - start:.2f}|{said}")


if __name__ == "__main__":
    main(sys.argv[1])
