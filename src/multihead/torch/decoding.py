"""A call of the torch layer over cached keys and values."""

from __future__ import annotations

from typing import Any

import torch

from multihead import _native
from multihead.arguments import LayerOptions, LayerTensors
from multihead.arrays import element_of
from multihead.checks import wrong
from multihead.decoding import check_cache
from multihead.kv_cache import KVCache
from multihead.layouts import Sizes
from multihead.torch import engine
from multihead.torch.calls import LayerCall
from multihead.torch.dispatch import needs_grad
from multihead.torch.sizes import broadcasts
from multihead.torch.tensors import dtype_of, engine_reads


def sizes_of(module: Any) -> Sizes:
    """Return a module's sizes as the NumPy layer has them."""
    return Sizes(
        embed=module.embed_dim,
        heads=module.num_heads,
        key_heads=module.num_kv_heads,
        head=module.head_dim,
        kdim=module.kdim,
        vdim=module.vdim,
        bias=module.in_proj_bias is not None,
        bias_key=module.bias_k is not None,
        zero_row=module.add_zero_attn,
        sinks=module._has_sinks,
    )


def refuse_beside_cache(module: Any, tensors: LayerTensors, ragged: bool) -> None:
    """Say what a call with a cache cannot have, or return."""
    if module.training:
        raise wrong("kv_cache", "None in training mode; module.eval() before", "one")
    if needs_grad(tensors):
        got = "tensors that require grad"
        raise wrong("kv_cache", "torch.no_grad(), as cached keys have no gradients", got)
    if ragged:
        raise wrong("query", "a dense tensor beside a cache", "a NestedTensor")
    if tensors.padding is not None:
        raise wrong("key_padding_mask", "None beside a cache (truncate the cache)", "a tensor")


def step(
    sizes: Sizes, tensors: LayerTensors, options: LayerOptions, cache: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Append the keys of the call's tokens to a cache, and attend to all of it.

    Parameters
    ----------
    sizes : Sizes
    tensors : LayerTensors
        Batched; angles for as many positions as there will be.
    options : LayerOptions
    cache : KVCache

    Returns
    -------
    out : Tensor
    weights : Tensor or None
        (N, H or 1, L, keys).
    """
    call = LayerCall(tensors, options, None)
    query, key, _ = tensors.three
    n, length = (1, 0) if options.tokens_first else (0, 1)
    batch, tokens = query.shape[n], query.shape[length]
    held = check_cache(cache, sizes, batch, element_of(options.dtype))
    if key.shape[length] != tokens:
        raise wrong("key", f"as many new tokens as queries, {tokens}", key.shape[length])
    average, mask = options.average, tensors.mask
    out, weights = engine.new_out(call), None
    with held.alone():
        parts = held.parts(tokens, average is not None or mask is not None)
        for part in parts:
            fresh = part.stop - part.start
            some = tensors if len(parts) == 1 else _cut(tensors, length, part)
            to = out.narrow(length, part.start, fresh)
            columns = int(held.rows_with(fresh).max(initial=0))
            scores = (batch, sizes.heads, fresh, columns)
            if mask is not None and not _fits(mask, scores):
                expected = f"{scores[2:]} or broadcastable to {scores}"
                raise wrong("attn_mask", expected, tuple(mask.shape))
            rows = held.room_for(fresh)
            if average is not None:
                shape = batch, 1 if average else sizes.heads, fresh, columns
                weights = torch.empty(shape, dtype=dtype_of(call), device="cpu")
            to_out, to_weights = engine_reads((to, weights))
            _native.cached_forward(options, engine_reads(some), rows, to_out, to_weights)
            held.advance(fresh)
    return out, weights


def _cut(tensors: LayerTensors, axis: int, part: slice) -> LayerTensors:
    """Take some tokens of the inputs; one that is absent is another one."""
    count = part.stop - part.start
    inputs = (tensors.query, tensors.key, tensors.value)
    q, k, v = (x if x is None else x.narrow(axis, part.start, count) for x in inputs)
    return tensors._replace(query=q, key=k, value=v)


def _fits(mask: torch.Tensor, scores: tuple[int, int, int, int]) -> bool:
    n, heads, tokens, columns = scores
    if mask.dim() == 4:
        return bool(broadcasts(mask.shape, scores))
    return tuple(mask.shape) in ((tokens, columns), (n * heads, tokens, columns))


def length_after(cache: KVCache, tokens: int) -> int:
    """Return how many positions there are after so many tokens more."""
    return int(cache.lengths.max(initial=0)) + tokens
