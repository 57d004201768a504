"""Random calls of the NumPy face, for the net: the layer, ragged batches, the functions."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

import multihead as mh
from multihead import functional
from net_draws import Array, Digest, Draws, mask_of, normal, strided

HEAD_SIZES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 20, 32, 33, 64, 65, 80)
HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def lengths(draws: Draws) -> tuple[int, int, int]:
    """N, L and S: mostly small, often across tiles, some long, many, or empty."""
    way = draws.random()
    small, edge = (1, 21), draws.choice([(60, 71), (120, 141)])
    if way < 0.5:
        n, length, s = draws.integers(1, 5), draws.integers(*small), draws.integers(*small)
    elif way < 0.72:
        n = draws.integers(1, 4)
        length, s = draws.integers(*edge), draws.integers(*draws.choice([small, edge]))
        length, s = (length, s) if draws.flip() else (s, length)
    elif way < 0.80:
        n, length, s = 1, draws.integers(1, 71), draws.integers(500, 1101)
    elif way < 0.84:  # weights in panels
        n = draws.integers(2, 6)
        length, s = (draws.choice([1, 2]) * 1024 // n + draws.integers(1, 20) for _ in "LS")
        length = draws.choice([length, draws.integers(*small)])
    elif way < 0.85:  # more tokens than a weight's gradient sums in one go
        n, length, s = 20, draws.integers(206, 215), draws.integers(206, 215)
    elif way < 0.855:  # more tiles of keys than groups of eight
        n, length, s = 1, draws.integers(1, 21), draws.integers(4097, 4400)
    elif way < 0.96:  # a sequence at a time
        n, length, s = draws.integers(8, 21), draws.integers(1, 41), draws.integers(1, 41)
    else:
        n, length, s = (draws.integers(0, 4) * draws.integers(0, 2) for _ in "NLS")
    return n, length, s


def heads(draws: Draws, tokens: int) -> tuple[int, int]:
    """H and D; less of them where there are many tokens."""
    h, d = draws.integers(1, 5), int(draws.choice(HEAD_SIZES))
    most = 320 if tokens < 100 else 140 if tokens < 600 else 68 if tokens < 3000 else 20
    while h * d > most:
        h, d = (h - 1, d) if h > 1 else (h, d // 2)
    return h, d


def load_parameters(draws: Draws, shapes: dict[str, tuple[int, ...]], dtype: Any) -> dict[str, Any]:
    """A state dict of random numbers, matrices scaled by their width."""
    scales = {name: 2.0 ** -(shape[-1].bit_length() // 2) for name, shape in shapes.items()}
    return {
        name: normal(draws, shape, dtype, scales[name] if len(shape) == 2 else 0.5)
        for name, shape in shapes.items()
    }


def make_layer(draws: Draws, embed: int, h: int, dtype: Any, **options: Any) -> Any:
    """A layer with options and parameters drawn."""
    layer = mh.MultiheadAttention(
        embed,
        h,
        dropout=draws.choice([0.0, 0.0, 0.1, 0.5, 1.0]),
        bias=draws.flip(0.75),
        add_bias_kv=draws.flip(0.25),
        add_zero_attn=draws.flip(0.25),
        dtype=dtype,
        seed=0,
        **options,
    )
    shapes = {name: x.shape for name, x in layer.state_dict().items()}
    layer.load_state_dict(load_parameters(draws, shapes, dtype))
    layer.rng_state = (draws.integers(2**63), draws.integers(2**40))
    return layer.train(draws.flip(0.93))


def shared_inputs(draws: Draws, same_shape: bool, same_source: bool) -> str:
    """Which of the inputs are one array."""
    way = draws.random()
    if same_shape and way < 0.4:
        return "query, key and value"
    return "key and value" if same_source and way < 0.7 else "none"


def gradient_arrays(draws: Draws, inputs: Any) -> tuple[Any, ...]:
    """Arrays for `out=`: one twice where shapes allow it, some missing, of any strides."""
    made: list[Any] = []
    for x in inputs:
        twin = next((y for y in made if y is not None and y.shape == x.shape), None)
        if twin is not None and draws.flip(0.6):
            made.append(twin)
        elif draws.flip(0.15):
            made.append(None)
        else:
            made.append(strided(draws, np.full(x.shape, 7, x.dtype)))
    return tuple(made)


def masks(draws: Draws, n: int, h: int, length: int, s: int, dtype: Any) -> dict[str, Any]:
    """attn_mask and key_padding_mask, of all kinds and shapes; dtypes may be others'."""
    found: dict[str, Any] = {}
    float_dtype = draws.choice([dtype, dtype, np.float32, np.float64, np.float16])
    if draws.flip():
        four = tuple(x if draws.flip() else 1 for x in (n, h, length, s))
        shape = draws.choice([(length, s), (n * h, length, s), four])
        kind = draws.choice(["bool", "float"])
        found["attn_mask"] = strided(draws, mask_of(draws, kind, shape, float_dtype, True))
    if draws.flip(0.4):
        kind = draws.choice(["bool", "float"])
        padding = mask_of(draws, kind, (n, s), float_dtype, True)
        found["key_padding_mask"] = strided(draws, padding)
    return found


def d_weights_of(draws: Draws, weights: Any, dtype: Any) -> Any:
    """A gradient of the weights, half of the time."""
    if weights is None or draws.flip():
        return None
    if isinstance(weights, list):
        return [strided(draws, normal(draws, w.shape, dtype)) for w in weights]
    return strided(draws, normal(draws, weights.shape, dtype))


def layer_call(draws: Draws, digest: Digest, dtype: Any) -> str:
    """One call of the layer, and its backward."""
    n, length, s = lengths(draws)
    unbatched, batch_first = draws.flip(0.12), draws.flip()
    n = 1 if unbatched else n
    if draws.flip(0.5):
        s = length
    h, d = heads(draws, n * max(length, s))
    embed = h * d
    other = draws.flip(0.25)
    width = 1024 if draws.flip(0.1) else draws.integers(1, 50)  # rows that share a set of a cache
    kdim, vdim = (width if other and draws.flip(0.7) else embed for _ in "kv")
    layer = make_layer(draws, embed, h, dtype, kdim=kdim, vdim=vdim, batch_first=batch_first)

    def tokens(count: int, width: int) -> Array:
        lead = (count,) if unbatched else (n, count) if batch_first else (count, n)
        return strided(draws, normal(draws, (*lead, width), dtype))

    query, key, value = tokens(length, embed), tokens(s, kdim), tokens(s, vdim)
    shared = shared_inputs(draws, query.shape == key.shape == value.shape, kdim == vdim)
    if shared != "none":
        value = key
        query = key if shared.startswith("query") else query
    options = masks(draws, n, h, length, s, dtype)
    if unbatched and "key_padding_mask" in options:
        options["key_padding_mask"] = options["key_padding_mask"][0]
    options |= {
        "is_causal": draws.flip(0.35),
        "need_weights": draws.flip(),
        "average_attn_weights": draws.flip(),
    }
    out, weights = layer(query, key, value, **options)
    digest.add(out, weights, *layer.rng_state)
    if layer.training:
        d_out = strided(draws, normal(draws, out.shape, dtype))
        inputs = (query, key, value)
        for _ in range(1 + draws.flip(0.15)):  # twice: the parameters' gradients add up
            found = layer.backward(
                d_out,
                d_weights_of(draws, weights, dtype),
                cache=layer.cache,
                out=gradient_arrays(draws, inputs) if draws.flip(0.3) else None,
                need_mask_grad=draws.flip(),
            )
            digest.add(found)
        digest.add([layer.grads[name] for name in sorted(layer.grads)])
    arrays = {name: f"{x.dtype}{x.shape}" for name, x in options.items() if name.endswith("mask")}
    flags = [name for name, x in options.items() if x is True]
    return f"{layer} N={n} L={length} S={s} shared: {shared} {arrays} {flags} {layer.training=}"


def ragged_call(draws: Draws, digest: Digest, dtype: Any = None) -> str:
    """One call of the layer on ragged batches, and its backward; of any dtype if not of one."""
    dtype = dtype or draws.choice([np.dtype(np.float32), np.dtype(np.float64), *HALF])
    most = draws.choice([9, 9, 21, 71, 141])
    n = draws.integers(0, 12 if most < 71 else 5)
    spans = [[draws.integers(0, most) for _ in range(n)] for _ in "qk"]
    if draws.flip(0.1) and n:
        spans[1][0] = draws.integers(500, 1101)
    if draws.flip():
        spans[1] = spans[0]
    h, d = heads(draws, max(map(sum, spans)))
    embed = h * d
    kdim, vdim = (embed if draws.flip(0.8) else draws.integers(1, 40) for _ in "kv")
    layer = make_layer(draws, embed, h, dtype, kdim=kdim, vdim=vdim)

    def ragged(counts: list[int], width: int) -> mh.Ragged:
        values = strided(draws, normal(draws, (sum(counts), width), dtype))
        steps = np.array([sum(counts[:i]) for i in range(len(counts) + 1)])
        return mh.Ragged(values, steps)

    query, key, value = ragged(spans[0], embed), ragged(spans[1], kdim), ragged(spans[1], vdim)
    same_shape = spans[0] == spans[1] and kdim == embed == vdim
    shared = shared_inputs(draws, same_shape, kdim == vdim)
    if shared != "none":
        value = key
        query = key if shared.startswith("query") else query
    options = masks(draws, n, h, *(max(x, default=0) for x in spans), dtype)
    options.pop("key_padding_mask", None)
    options |= {
        "is_causal": draws.flip(0.35),
        "need_weights": draws.flip(),
        "average_attn_weights": draws.flip(),
    }
    out, weights = layer(query, key, value, **options)
    digest.add(out.values, weights, *layer.rng_state)
    if layer.training:
        d_out = mh.Ragged(normal(draws, out.values.shape, dtype), out.offsets)
        d_weights = d_weights_of(draws, weights, dtype)
        *inputs, d_mask, _ = layer.backward(d_out, d_weights, need_mask_grad=True)
        digest.add([x.values for x in inputs], d_mask)
        digest.add([layer.grads[name] for name in sorted(layer.grads)])
    flags = [name for name, x in options.items() if x is True]
    mask = options.get("attn_mask")
    return f"{layer} {spans} {shared=} mask={None if mask is None else mask.shape} {flags}"


def functional_call(draws: Draws, digest: Digest, dtype: Any, few: bool = False) -> str:
    """One call of attention alone, and its backward."""
    lead = tuple(draws.integers(1, 4) for _ in range(draws.choice([0, 1, 2, 2, 2, 3])))
    if few:
        length, s = draws.integers(1, 5), draws.integers(256, 1400)
    else:
        n, length, s = lengths(draws)
        lead = lead if n else (0, *lead[1:])
        lead = (2, 9) if n >= 8 else lead
        if length <= 4 and s >= 256:
            length += 4
    d = int(draws.choice(HEAD_SIZES)) if max(length, s) < 200 else draws.integers(1, 40)
    dv = d if draws.flip(0.7) else int(draws.choice(HEAD_SIZES))
    if math.prod(lead) * max(length, s) > 2500:
        lead = lead[:1]
    if draws.flip(0.4) and not few:
        s = length
    q = strided(draws, normal(draws, (*lead, length, d), dtype))
    k = strided(draws, normal(draws, (*lead, s, d), dtype))
    v = strided(draws, normal(draws, (*lead, s, dv), dtype))
    if d == dv and draws.flip(0.3):
        v = k
        q = k if length == s and draws.flip() else q
    mask, sums = None, False
    if draws.flip(0.6):
        scores = (*lead, length, s)
        rank = draws.integers(0, len(scores) + 1)
        shape = tuple(x if draws.flip(0.6) else 1 for x in scores[len(scores) - rank :])
        outer = ((1,) * (len(scores) - rank) + shape)[: max(len(lead) - 1, 0)]
        sums = outer != lead[: len(outer)] and max(outer, default=1) > 1  # NumPy adds them up
        float_dtype = draws.choice([dtype, dtype, np.float32, np.float64])
        kind = draws.choice(["bool", "float"])
        mask = strided(draws, mask_of(draws, kind, shape, float_dtype, False))
        if kind == "bool" and mask.shape == (length, s) and s > 1 and draws.flip():
            mask[:, 0] = False  # what no query sees may be no number
            k, v = k.copy(), v.copy()
            k[..., 0, :] = v[..., 0, :] = draws.choice([np.nan, np.inf])
    exact = d in (1, 4, 16, 64)  # a power's last bit is the C library's
    options = {
        "dropout_p": draws.choice([0.0, 0.0, 0.2, 0.7]),
        "is_causal": draws.flip(0.35),
        "scale": None if exact and draws.flip() else draws.choice([0.125, 0.3, 1.0, -0.5]),
        "seed": draws.integers(2**63),
    }
    out, cache = functional.scaled_dot_product_attention(
        q, k, v, mask, return_cache=True, **options
    )
    digest.add(out, cache.stats)
    d_out = strided(draws, normal(draws, out.shape, dtype))
    wanted = draws.flip() and not sums
    digest.add(
        functional.scaled_dot_product_attention_backward(d_out, cache, need_mask_grad=wanted)
    )
    shown = None if mask is None else f"{mask.dtype}{mask.shape}"
    return f"q={q.shape} k={k.shape} v={v.shape} mask={shown} {options} need_mask_grad={wanted}"
