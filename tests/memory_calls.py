"""What may run out of memory: calls of the layer and of attention alone."""

from __future__ import annotations

from typing import Any

import numpy as np

import multihead as mh
from memory_faults import Case, normal
from multihead import functional

RNG = np.random.default_rng(6)


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


def every_option() -> Case:
    q, k = normal(2, 4, 70, 8), normal(2, 2, 90, 8)
    mask = np.where(RNG.random((2, 4, 70, 90)) < 0.2, -np.inf, 0.3).astype(np.float32)
    options = {
        "attn_mask": mask,
        "enable_gqa": True,
        "window": (30, 20),
        "query_offset": [3, 20],
        "key_lengths": [90, 60],
        "softcap": 3.0,
        "alibi_slopes": normal(4),
        "sinks": normal(4),
        "dropout_p": 0.2,
        "seed": 3,
    }

    def call() -> Any:
        out, lse, cache = functional.scaled_dot_product_attention(
            q, k, k, return_lse=True, return_cache=True, **options
        )
        grads = functional.scaled_dot_product_attention_backward(
            out, cache, d_lse=lse, need_mask_grad=True, need_sink_grad=True
        )
        return [out, lse, *grads]

    return Case(call, [q, k, mask])


def half_precision() -> Case:
    made = mh.MultiheadAttention(24, 3, batch_first=True, dtype="float16", seed=0)
    x = normal(2, 70, 24).astype(np.float16)
    given = np.full_like(x, 3)

    def prepare() -> None:
        given.fill(3)
        made.zero_grad()

    def call() -> Any:
        out, weights = made(x, x, x, average_attn_weights=False)
        made.backward(out, weights, out=(given, given, None))
        return [out, weights, given, *made.grads.values()]

    return Case(call, [x, *made.parameters().values()], prepare)


def arrays_in_other_orders() -> Case:
    made = layer()
    x = normal(24, 70, 3).transpose(2, 1, 0)
    swapped = x.astype(">f4")
    state = made.rng_state

    def call() -> Any:
        made.rng_state = state
        return [x for x in made(swapped, x, x) if x is not None]

    return Case(call, [x, swapped])


def merged() -> Case:
    outs, lses = [normal(2, 3, 70, 8) for _ in "ab"], [normal(2, 3, 70) for _ in "ab"]
    return Case(lambda: functional.merge_attention(outs, lses), [*outs, *lses])


def rotated() -> Case:
    x, rope = normal(2, 3, 70, 8), mh.Rope()  # which keeps its tables

    def call() -> Any:
        return [functional.rotate(x, rope), functional.rotate_backward(x, rope)]

    return Case(call, [x])
