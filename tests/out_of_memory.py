"""Lets each allocation of a call fail in turn: run with failing_heap preloaded, one case by name.

Each failure must be a MemoryError that has changed nothing, after which the call works.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import multihead as mh
from multihead import functional

_HEAP = ctypes.CDLL(None)
RNG = np.random.default_rng(5)


class Case(NamedTuple):
    """A call, the arrays that a failure must leave alone, and what to do before each call."""

    call: Callable[[], Any]
    watched: list[np.ndarray]
    prepare: Callable[[], None] = lambda: None


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def layer() -> mh.MultiheadAttention:
    made = mh.MultiheadAttention(24, 3, add_bias_kv=True, batch_first=True, dropout=0.2, seed=1)
    made.grads  # noqa: B018  # made now, not in the call that fails
    return made


def layer_forward() -> Case:
    made, x, mask = layer(), normal(3, 70, 24), normal(70, 70)
    padding = np.where(RNG.random((3, 70)) < 0.3, -np.inf, 0.5).astype(np.float32)
    state = made.rng_state

    def call() -> Any:
        made.rng_state = state
        return made(x, x, x, padding, True, mask)

    return Case(call, [x, mask, padding, *made.parameters().values()])


def layer_backward() -> Case:
    made, x, mask = layer(), normal(1, 1100, 24), normal(1, 1, 1, 1100)
    out, weights = made(x, x, x, attn_mask=mask)
    cache, results = made.cache, [np.full_like(x, 7) for _ in range(3)]
    watched = [x, mask, *results, *made.grads.values()]

    def prepare() -> None:
        made.zero_grad()
        for result in results:
            result.fill(7)

    def call() -> Any:
        made.backward(out, weights, cache=cache, out=tuple(results), need_mask_grad=True)
        return [*results, *made.grads.values()]

    return Case(call, watched, prepare)


def rules_backward() -> Case:
    q, k, v = normal(1, 4, 1100, 8), normal(1, 2, 1100, 8), normal(1, 2, 1100, 8)
    options = {"window": (300, 5), "softcap": 2.0, "alibi_slopes": normal(4), "sinks": normal(4)}
    out, cache = functional.scaled_dot_product_attention(
        q, k, v, enable_gqa=True, return_cache=True, **options
    )

    def call() -> Any:
        return functional.scaled_dot_product_attention_backward(out, cache, need_sink_grad=True)

    return Case(call, [q, k, v, out])


def few_queries_with_rules() -> Case:
    q, k = normal(2, 6, 1, 8), normal(2, 2, 700, 8)
    options = {"query_offset": "end", "window": (300, 0), "sinks": normal(6)}

    def call() -> Any:
        return [functional.scaled_dot_product_attention(q, k, k, enable_gqa=True, **options)]

    return Case(call, [q, k])


def options_backward() -> Case:
    made = mh.MultiheadAttention(
        24, 4, num_kv_heads=2, sinks=True, rope=mh.Rope(), batch_first=True, seed=0
    )
    x = normal(2, 70, 24)

    def call() -> Any:
        made.zero_grad()
        out, weights = made(x, x, x, is_causal=True)
        return [*made.backward(out, weights), *made.grads.values()]

    return Case(call, [x, *made.parameters().values()])


def cached_step() -> Case:
    made = mh.MultiheadAttention(24, 4, num_kv_heads=2, rope=mh.Rope(), seed=0).eval()
    x, cache = normal(2, 3, 24), made.new_kv_cache(3, 700, "bfloat16")

    def prepare() -> None:
        cache.lengths = [5, 600, 0]

    def call() -> Any:
        return [made(x, x, x, need_weights=False, kv_cache=cache)[0]]

    return Case(call, [x, cache._lengths, cache._rows], prepare)


def packed() -> Case:
    q = mh.Ragged(normal(130, 4, 8), [0, 2, 100, 130])  # of two and of many queries
    k = mh.Ragged(normal(900, 2, 8), [0, 600, 700, 900])
    options = {"enable_gqa": True, "is_causal": True, "query_offset": "end"}

    def call() -> Any:
        out, cache = functional.scaled_dot_product_attention(q, k, k, return_cache=True, **options)
        grads = functional.scaled_dot_product_attention_backward(out, cache)
        return [x.values for x in (out, *grads)]

    return Case(call, [q.values, k.values])


def ragged() -> Case:
    made = layer()
    x = mh.Ragged.from_list([normal(n, 24) for n in (3, 0, 90, 7)])
    state = made.rng_state

    def call() -> Any:
        made.rng_state = state
        out, weights = made(x, x, x, is_causal=True)
        return [out.values, *weights]

    return Case(call, [x.values])


def attention() -> Case:
    q, k, v = normal(2, 2, 70, 9), normal(2, 2, 80, 9), normal(2, 2, 80, 12)

    def call() -> Any:
        out, cache = functional.scaled_dot_product_attention(q, k, v, return_cache=True)
        return [out, *functional.scaled_dot_product_attention_backward(out, cache)]

    return Case(call, [q, k, v])


def few_queries() -> Case:
    q, k, v = normal(1, 2, 2, 9), normal(1, 2, 700, 9), normal(1, 2, 700, 12)
    return Case(
        lambda: [functional.scaled_dot_product_attention(q, k, v, is_causal=True)], [q, k, v]
    )


def torch_module() -> Case:
    import torch

    import multihead.torch as mht

    made = mht.MultiheadAttention(24, 3, batch_first=True)
    x = torch.from_numpy(normal(2, 70, 24)).requires_grad_()

    def call() -> Any:
        made.zero_grad()
        x.grad = None
        out, weights = made(x, x, x)
        (out.sum() + weights.square().sum()).backward()
        return [out.detach().numpy(), *(p.grad.numpy() for p in (x, *made.parameters()))]

    return Case(call, [x.detach().numpy(), *(p.detach().numpy() for p in made.parameters())])


def torch_attention() -> Case:
    import torch

    import multihead.torch as mht

    q, k, v = (torch.from_numpy(normal(2, 2, 70, 9)).requires_grad_() for _ in range(3))

    def call() -> Any:
        for x in (q, k, v):
            x.grad = None
        out = mht.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.square().sum().backward()
        return [out.detach().numpy(), *(x.grad.numpy() for x in (q, k, v))]

    return Case(call, [x.detach().numpy() for x in (q, k, v)])


CASES = [
    layer_forward,
    layer_backward,
    rules_backward,
    few_queries_with_rules,
    options_backward,
    cached_step,
    packed,
    ragged,
    attention,
    few_queries,
    torch_module,
    torch_attention,
]


def bits(result: Any) -> list[bytes]:
    return [np.ascontiguousarray(x).tobytes() for x in result]


def main(name: str) -> None:
    """Fail every allocation of one case."""
    case = next(case for case in CASES if case.__name__ == name)()
    case.prepare()
    expected = bits(case.call())
    failures = 0
    for n in range(1000):
        case.prepare()
        before = bits(case.watched)
        _HEAP.failing_heap_arm(n)
        try:
            result = case.call()
        except MemoryError:
            assert _HEAP.failing_heap_disarm(), "a MemoryError without a failed allocation"
            assert bits(case.watched) == before, f"allocation {n}: something was written"
            failures += 1
            assert bits(case.call()) == expected, f"after allocation {n} the call is wrong"
        else:
            if not _HEAP.failing_heap_disarm():
                break
            # an allocation that may fail: a worker's, or of the list of blocks that are kept
            assert bits(result) == expected, f"allocation {n}: wrong without an error"
    else:
        raise AssertionError("no end of allocations")
    print(failures)


if __name__ == "__main__":
    main(sys.argv[1])
