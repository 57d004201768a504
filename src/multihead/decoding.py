"""A call of the layer over cached keys and values."""

from __future__ import annotations

from typing import Any

from multihead import _native
from multihead.arguments import LayerOptions, LayerTensors
from multihead.arrays import Array, Element
from multihead.checks import wrong, wrong_type
from multihead.kv_cache import KVCache
from multihead.layer_rules import LayerRules
from multihead.layouts import Dense, Inputs, Sizes, given_once
from multihead.masks import attention_mask
from multihead.memory import new_array


def check_cache(cache: Any, sizes: Sizes, batch: int, element: Element) -> KVCache:
    """Return a cache that fits a layer and so many sequences, or raise."""
    if not isinstance(cache, KVCache):
        raise wrong_type("kv_cache", "a KVCache, as new_kv_cache makes it", type(cache).__name__)
    if sizes.extra_keys:
        got = "one with add_bias_kv or add_zero_attn"
        raise wrong("kv_cache", "a layer without rows after its keys", got)
    keys, values = cache.keys.shape, cache.values.shape
    expected = (batch, sizes.key_heads, keys[2], sizes.head)
    if keys != expected or values != expected:
        raise wrong("kv_cache", f"keys and values {expected}", f"{keys} and {values}")
    wide = element.name == "float64"
    if wide != (cache.dtype == "float64"):
        raise wrong_type("kv_cache", f"a dtype that goes with {element.name}", cache.dtype)
    return cache


def step(
    batch: Dense,
    cache: KVCache,
    rules: LayerRules,
    options: LayerOptions,
    attn_mask: Any,
    params: Any,
) -> tuple[Any, Any]:
    """Append the keys of the call's tokens to a cache, and attend to all of it."""
    tokens, sizes, compute = batch.queries, batch.sizes, batch.element.compute
    if batch.keys != tokens:
        raise wrong("key", f"as many new tokens as queries, {tokens}", batch.keys)
    wanted = options.average is not None
    out, weights = batch.new_out(), None
    with cache.alone():
        parts = cache.parts(tokens, wanted or attn_mask is not None)
        for part in parts:
            inputs = batch.inputs if len(parts) == 1 else _cut(batch, batch.inputs, part)
            to = out if len(parts) == 1 else out[_along(batch, part)]
            fresh = part.stop - part.start
            columns = int(cache.rows_with(fresh).max(initial=0))
            mask = None
            if attn_mask is not None:
                scores = (batch.batch, sizes.heads, fresh, columns)
                mask = attention_mask(attn_mask, scores, compute)
            held = cache.room_for(fresh)
            angles: tuple[Array | None, Array | None] = None, None
            if rules.rope is not None:
                length = int(held.positions.max(initial=0)) + fresh
                angles = rules.rope.angles(sizes.head, length, compute)
            slopes = rules.slopes(sizes.heads, compute)
            of_masks = None, mask and mask.array
            given = given_once(*inputs)
            tensors = LayerTensors._make((*given, *of_masks, *params, slopes, *angles))
            if wanted:
                heads = () if options.average else (sizes.heads,)
                shape = (*((batch.batch,) if batch.batched else ()), *heads, fresh, columns)
                weights = new_array("weights", shape, batch.element.stored)
            _native.cached_forward(options, tensors, held, to, weights)
            cache.advance(fresh)
    return batch.finish_out(out), None if weights is None else batch.finish_weights(weights)


def _along(batch: Dense, part: slice) -> Any:
    """Index some tokens of an input or an output."""
    return part if batch.tokens_first or not batch.batched else (slice(None), part)


def _cut(batch: Dense, inputs: Inputs, part: slice) -> Inputs:
    """Take some tokens of the inputs; what is one array stays one."""
    at, (query, key, value) = _along(batch, part), inputs
    q = query[at]
    k = q if key is query else key[at]
    return q, k, k if value is key else value[at]
