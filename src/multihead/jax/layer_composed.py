"""The layer composed of JAX's own operations: what forward mode and second derivatives go through.

The passes are those of `multihead.reference.layer`, with every score in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from multihead.arguments import LayerOptions, LayerTensors
from multihead.jax.dropout import keep_mask
from multihead.jax.layer_form import LayerForm
from multihead.reference.dropout import BIAS_KEY, ZERO_KEY


def composed_layer(form: LayerForm, operands: Sequence[Any]) -> list[Any]:
    """Return the output and, if the call asks for them, the weights."""
    o, t = form.options, form.tensors(operands)
    query, key, value = t.three
    dtype = query.dtype
    compute = jnp.float64 if dtype == jnp.float64 else jnp.float32
    if o.tokens_first:
        query, key, value = (jnp.swapaxes(x, 0, 1) for x in (query, key, value))

    # 1. One mask for everything; what the padding hides is never read.
    mask, hidden, padded = _masks(t)
    if padded is not None:
        key, value = (jnp.where(padded[..., None], 0, x) for x in (key, value))

    # 2. Projections, (N, heads, tokens, D).
    weights, biases = _projections(form, t)
    heads = o.num_heads, o.key_heads, o.key_heads
    q, k, v = (
        _split(x.astype(compute) @ w.astype(compute) + b.astype(compute), count)
        for x, w, b, count in zip((query, key, value), weights, biases, heads, strict=True)
    )

    # 3. Queries and keys turned by their positions, then the keys that have none.
    keys = k.shape[2]
    q, k = (_turned(x, t, o.interleaved) for x in (q, k))
    k, v, places = _with_extra(t, o, k.astype(compute), v)

    # 4. Attention.
    seed = operands[-1] if form.drops else None
    p = _weights(t, o, q @ jnp.swapaxes(_repeated(k, o), 2, 3), (mask, hidden), keys)
    if seed is not None:
        keep, scale = keep_mask(seed, p.shape, o.dropout_p, places)
        p = jnp.where(keep, p * scale, 0)
    attended = p @ _repeated(v, o)

    # 5. Heads side by side, and the output projection.
    merged = jnp.swapaxes(attended, 1, 2).reshape(*query.shape[:2], -1)
    out_weight = t.out_weight if form.kernels else t.out_weight.T
    out = merged @ out_weight.astype(compute)
    if t.out_bias is not None:
        out = out + t.out_bias.astype(compute)
    results = [jnp.swapaxes(out, 0, 1) if o.tokens_first else out]
    if o.average is not None:
        results.append(p.mean(1) if o.average else p)
    return [x.astype(dtype) for x in results]


def _masks(t: LayerTensors) -> tuple[Any, Any, Any]:
    """Return what is added to the scores, what hides keys, and which keys are not read."""
    added, hides = jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1), bool)
    padded = None
    if t.mask is not None:
        added, hides = _read_mask(t.mask)
    if t.padding is not None:
        columns, padded = _read_mask(t.padding)
        hides = hides | padded[:, None, None]
        if t.padding.dtype != bool:
            added = added + columns[:, None, None]
            added = jnp.maximum(added, jnp.finfo(added.dtype).min)
    return added, hides, padded


def _read_mask(mask: Any) -> tuple[Any, Any]:
    if mask.dtype == bool:
        return jnp.zeros(()), mask
    hides = jnp.isneginf(mask)
    return jnp.where(hides, 0, mask), hides


def _projections(form: LayerForm, t: LayerTensors) -> tuple[list[Any], list[Any]]:
    """Return weights (in, heads * D) and biases of query, key and value."""
    o = form.options
    queries, keys = o.num_heads * o.head_dim, o.key_heads * o.head_dim
    ends = [queries, queries + keys]
    weights = [t.q_weight, t.k_weight, t.v_weight]
    if t.in_weight is not None:
        weights = jnp.split(t.in_weight, ends)
    if not form.kernels:
        weights = [w.T for w in weights]
    biases = [jnp.zeros(())] * 3 if t.in_bias is None else jnp.split(t.in_bias, ends)
    return weights, biases


def _split(x: Any, heads: int) -> Any:
    n, length, width = x.shape
    return jnp.swapaxes(x.reshape(n, length, heads, width // heads), 1, 2)


def _repeated(x: Any, o: LayerOptions) -> Any:
    """Return heads of keys or values once for every head of queries."""
    return x if o.key_heads == o.num_heads else jnp.repeat(x, o.num_heads // o.key_heads, 1)


def _turned(x: Any, t: LayerTensors, interleaved: bool) -> Any:
    """Turn pairs of features of x (N, H, L, D) by the angles of their positions."""
    if t.cosine is None:
        return x
    pairs = t.cosine.shape[0]
    c, s = (table[:, : x.shape[2]].T for table in (t.cosine, t.sine))  # (L, pairs)
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    a, b = x[..., first], x[..., second]
    return x.at[..., first].set(a * c - b * s).at[..., second].set(b * c + a * s)


def _with_extra(t: LayerTensors, o: LayerOptions, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Append bias_k and bias_v, then the zero row; return too where dropout says that keys are."""
    _, heads, keys, width = k.shape
    places = [jnp.arange(keys, dtype=jnp.uint32)]
    one_more = ((0, 0), (0, 0), (0, 1), (0, 0))
    if t.bias_k is not None:  # padded and added: rows to concatenate would have to be sharded alike
        rows = (x.astype(k.dtype).reshape(heads, 1, width) for x in (t.bias_k, t.bias_v))
        k, v = (
            jnp.pad(x, one_more) + jnp.pad(row, ((0, 0), (keys, 0), (0, 0)))
            for x, row in zip((k, v), rows, strict=True)
        )
        places.append(jnp.full(1, BIAS_KEY, jnp.uint32))
    if o.zero_row:
        k, v = (jnp.pad(x, one_more) for x in (k, v))
        places.append(jnp.full(1, ZERO_KEY, jnp.uint32))
    return k, v, jnp.concatenate(places)


def _weights(
    t: LayerTensors, o: LayerOptions, products: Any, masks: tuple[Any, Any], keys: int
) -> Any:
    """Softmax of scores (N, H, L, S'), of which the first `keys` columns have a position."""
    queries, columns = products.shape[2:]
    scores = products * o.head_dim**-0.5
    if o.softcap:
        scores = o.softcap * jnp.tanh(scores / o.softcap)
    step = jnp.arange(columns) - jnp.arange(queries)[:, None]  # from a query to a key
    step = jnp.where(jnp.arange(columns) < keys, step, 0)
    if t.alibi_slopes is not None:
        scores = scores - t.alibi_slopes[:, None, None] * jnp.abs(step)
    added, hides = masks
    extra = columns - keys
    if extra:
        added, hides = (_padded(x, (queries, keys), extra) for x in (added, hides))
    visible = ~hides
    if o.causal:
        visible = visible & (step <= 0)
    if o.window_left >= 0:
        visible = visible & (step >= -o.window_left)
    if o.window_right >= 0:
        visible = visible & (step <= o.window_right)
    visible = jnp.broadcast_to(visible, scores.shape)
    scores = jnp.where(visible, scores + added.astype(scores.dtype), -jnp.inf)

    # A row that sees no key stays zero.
    sees = visible.any(-1, keepdims=True)
    top = jnp.max(scores, -1, keepdims=True, initial=-jnp.inf)
    sunk: Any = 0.0
    if t.sinks is not None:
        sink = t.sinks.astype(scores.dtype)[:, None, None]
        top = jnp.maximum(top, sink)
        top = jax.lax.stop_gradient(jnp.where(sees, top, 0))
        sunk = jnp.exp(jnp.where(sees, sink, top) - top)
    else:
        top = jax.lax.stop_gradient(jnp.where(sees, top, 0))
    p = jnp.where(visible, jnp.exp(jnp.where(visible, scores, top) - top), 0)
    total = jnp.where(sees, p.sum(-1, keepdims=True) + sunk, 1)
    return p / total


def _padded(mask: Any, sizes: tuple[int, int], extra: int) -> Any:
    """Add columns to a mask for the keys that nothing hides."""
    wide = jnp.broadcast_to(mask, (*mask.shape[:2], *sizes))
    return jnp.pad(wide, ((0, 0), (0, 0), (0, 0), (0, extra)))
