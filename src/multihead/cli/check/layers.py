"""The layer beside the oracle: dense and ragged batches, and steps over a cache of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import multihead as mh
from multihead import reference
from multihead.cli.check.problem import Array, Found, Numbers, Problem
from multihead.cli.elements import store, widen

BATCH, QUERIES, KEYS = 2, 37, 70
INPUTS = ("query", "key", "value")

# what the constructor is told; sizes are odd, so that no tile is full
PLAIN = {"embed_dim": 33, "num_heads": 3}
OTHERS = {"kdim": 20, "vdim": 29, "add_bias_kv": True, "add_zero_attn": True}
MODERN: dict[str, Any] = {
    "embed_dim": 40,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 14,
    "window": (19, 8),
    "softcap": 3.0,
    "alibi": True,
    "sinks": True,
}


def plain(dtype: str) -> list[Problem]:
    """Pose one array as query, key and value; three with extra keys and averaged weights."""
    return [
        dense(Numbers(dtype, 1), PLAIN, {}, same=True),
        dense(Numbers(dtype, 2), PLAIN | OTHERS, {"need_weights": True}),
    ]


def masks(dtype: str) -> list[Problem]:
    """Pose causality; boolean masks that hide all from one query; additive masks."""
    n, length, s = BATCH, QUERIES, KEYS
    numbers = Numbers(dtype, 3)
    boolean = {"attn_mask": numbers.hidden(length, s), "key_padding_mask": numbers.hidden(n, s)}
    boolean["attn_mask"][5] = True
    added = {"attn_mask": numbers.mask(n, 1, length, s), "key_padding_mask": numbers.mask(n, s)}
    return [
        dense(numbers, PLAIN, {"is_causal": True}),
        dense(numbers, PLAIN, boolean),
        dense(numbers, PLAIN, added),
    ]


def dropout(dtype: str) -> list[Problem]:
    """Pose dropout, with the weights of each head."""
    call = {"need_weights": True, "average_attn_weights": False}
    return [dense(Numbers(dtype, 4), PLAIN | {"dropout": 0.3}, call)]


def modern(dtype: str) -> list[Problem]:
    """Pose groups of heads, windows, caps, ALiBi, sinks; rotary positions."""
    rope = {"rope": mh.Rope(), "embed_dim": 48, "num_heads": 3, "num_kv_heads": 1}
    return [
        dense(Numbers(dtype, 5), MODERN, {"is_causal": True}),
        dense(Numbers(dtype, 6), rope, {"is_causal": True}, same=True),
    ]


def dense(
    numbers: Numbers, options: Mapping[str, Any], call: Mapping[str, Any], *, same: bool = False
) -> Problem:
    """Pose forward and backward of a dense batch; `same`: query, key and value are one array."""
    layer, params = numbers.layer(options)
    n, length, e = BATCH, QUERIES, layer.embed_dim
    query = numbers.normal(n, length, e)
    key = query if same else numbers.normal(n, KEYS, layer.kdim)
    value = query if same else numbers.normal(n, KEYS, layer.vdim)
    d_out = numbers.normal(n, length, e)
    result = reference.forward(
        params, query[1], key[1], value[1], **_oracle_options(layer, call, max(length, KEYS))
    )
    expected: Found = {"out": result.out}
    d_weights: tuple[Any, Array | None] = None, None
    if call.get("need_weights"):
        average = call.get("average_attn_weights", True)
        expected["weights"] = result.weights.mean(1) if average else result.weights
        d_weights = numbers.normal(*expected["weights"].shape)
    expected |= reference.backward(result, d_out[1], d_weights[1])

    state = layer.rng_state

    def run() -> Found:
        layer.rng_state = state
        layer.zero_grad()
        out, weights = layer(query[0], key[0], value[0], **{"need_weights": False, **call})
        inputs = layer.backward(d_out[0], d_weights[0], need_mask_grad=True)
        names = (*INPUTS, "attn_mask", "key_padding_mask")
        found = {"out": out, "weights": weights, **dict(zip(names, inputs, strict=True))}
        return {name: widen(x) for name, x in {**found, **layer.grads}.items() if x is not None}

    return Problem(run, expected)


def _oracle_options(
    layer: mh.MultiheadAttention, call: Mapping[str, Any], positions: int
) -> dict[str, Any]:
    """Return what the oracle is told: the layer's options and those of the call."""
    told: dict[str, Any] = {
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "add_zero_attn": layer.add_zero_attn,
        "window": layer.window or (None, None),
        "softcap": layer.softcap,
        "dropout": layer.dropout,
        "seed": layer.rng_state[0],
        "counter": layer.rng_state[1],
    }
    compute = "float64" if layer.dtype == "float64" else "float32"
    if layer.alibi:
        slopes = mh.functional.alibi_slopes(layer.num_heads)
        told["alibi_slopes"] = np.asarray(slopes, compute)
    if layer.rope is not None:
        angles = layer.rope.angles(layer.head_dim, positions, compute)
        told["angles"] = tuple(table.T for table in angles)
    names = ("attn_mask", "key_padding_mask", "is_causal")
    return told | {name: call[name] for name in names if name in call}


def ragged(dtype: str) -> list[Problem]:
    """Pose sequences of many lengths, forward and backward, beside the oracle on each by itself."""
    numbers, lengths = Numbers(dtype, 7), (3, 0, 50, 1, 17)
    layer, params = numbers.layer(PLAIN)
    total, e, ends = sum(lengths), layer.embed_dim, np.cumsum(lengths)[:-1]
    (x, exact), (d_out, d_exact) = numbers.normal(total, e), numbers.normal(total, e)
    parts: list[Found] = []
    for own, of_own in zip(np.split(exact, ends), np.split(d_exact, ends), strict=True):
        if len(own):
            options = {"num_heads": layer.num_heads, "is_causal": True}
            result = reference.forward(params, *[own[None]] * 3, **options)
            parts.append({"out": result.out, **reference.backward(result, of_own[None])})
    expected = {name: np.sum([part[name] for part in parts], 0) for name in params}
    expected |= {
        name: np.concatenate([part[name][0] for part in parts]) for name in ("out", *INPUTS)
    }

    batch = mh.Ragged(x, np.cumsum([0, *lengths]))

    def run() -> Found:
        layer.zero_grad()
        out, _ = layer(batch, batch, batch, need_weights=False, is_causal=True)
        inputs = layer.backward(mh.Ragged(d_out, batch.offsets))
        found = dict(zip(("out", *INPUTS), (out, *inputs), strict=True))
        return {name: widen(each.values) for name, each in found.items()} | {
            name: widen(each) for name, each in layer.grads.items()
        }

    return [Problem(run, expected)]


def kv_cache(dtype: str) -> list[Problem]:
    """Pose a text in steps over a cache, the first of many tokens; the oracle has it at once."""
    numbers, tokens, first = Numbers(dtype, 8), 41, 30
    layer, params = numbers.layer({**MODERN, "rope": mh.Rope(), "window": None})
    layer.eval()
    _, exact = numbers.normal(BATCH, tokens, layer.embed_dim)
    options = _oracle_options(layer, {"is_causal": True}, tokens)
    expected = {"out": reference.forward(params, exact, exact, exact, **options).out}
    steps = [store(part, dtype) for part in np.split(exact, range(first, tokens), axis=1)]

    def run() -> Found:
        cache = layer.new_kv_cache(BATCH, tokens)
        outs = [
            widen(layer(x, x, x, need_weights=False, is_causal=True, kv_cache=cache)[0])
            for x in steps
        ]
        return {"out": np.concatenate(outs, 1)}

    return [Problem(run, expected)]
