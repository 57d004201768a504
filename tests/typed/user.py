"""A user's program for mypy and pyright in ``make lint``: what comes back is of the kind given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import multihead as mh
from multihead.functional import (
    AttentionCache,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

Floats = NDArray[np.float32]


class Other:
    """An array of another library."""


def layer_of_numpy(layer: mh.MultiheadAttention, x: Floats, flag: bool) -> None:
    """NumPy in, NumPy out; weights only where they are asked for."""
    out, weights = layer(x, x, x)
    assert_type(out, Floats)
    assert_type(weights, Floats)
    assert_type(layer(x, x, x, need_weights=False), tuple[Floats, None])
    assert_type(layer(x, x, x, need_weights=flag), tuple[Floats, Floats | None])
    assert_type(layer.backward(out), tuple[Floats, Floats, Floats])
    five = layer.backward(out, need_mask_grad=True)
    assert_type(five, tuple[Floats, Floats, Floats, Floats | None, Floats | None])
    assert_type(layer.backward(out, out=(x, None, x)), tuple[Floats, None, Floats])
    assert_type(layer.num_heads, int)
    assert_type(layer.train().eval(), mh.MultiheadAttention)
    layer.training = False
    layer.num_heads = 3  # type: ignore[misc]
    layer(x, x, x, is_casual=True)  # type: ignore[call-overload]
    mh.MultiheadAttention(8, 2, droput=0.1)  # type: ignore[call-arg]
    layer.load_state_dict(layer.state_dict())


def layer_of_others(layer: mh.MultiheadAttention, x: Other, anything: Any) -> None:
    """Arrays of another library come back as such, and what is Any stays Any."""
    assert_type(layer(x, x, x), tuple[Other, Other])
    assert_type(layer.backward(x), tuple[Other, Other, Other])
    assert_type(layer(anything, anything, anything, need_weights=False)[0], Any)


def layer_of_ragged(layer: mh.MultiheadAttention, parts: list[Floats]) -> None:
    """Ragged in, Ragged out; its sequences are of the kind that it was made of."""
    batch = mh.Ragged.from_list(parts)
    assert_type(batch, mh.Ragged[Floats])
    assert_type(batch[0], Floats)
    assert_type(batch[1:], mh.Ragged[Floats])
    assert_type(batch.to_padded(), Floats)
    out, weights = layer(batch, batch, batch)
    assert_type(out, mh.Ragged[Floats])
    assert_type(weights, list[Floats])
    assert_type(layer.backward(out)[0], mh.Ragged[Floats])
    for sequence in out:
        assert_type(sequence, Floats)


def functions(q: Floats, x: Other) -> None:
    """What comes back follows from return_lse and return_cache."""
    assert_type(scaled_dot_product_attention(q, q, q), Floats)
    out, cache = scaled_dot_product_attention(q, q, q, return_cache=True)
    assert_type(cache, AttentionCache)
    grads = scaled_dot_product_attention_backward(out, cache)
    assert_type(grads, tuple[Floats, Floats, Floats])
    _, lse = scaled_dot_product_attention(q, q, q, return_lse=True)
    assert_type(lse, NDArray[np.floating[Any]])
    assert_type(scaled_dot_product_attention(x, x, x, is_causal=True), Other)


def packed(q: mh.Ragged[Floats]) -> None:
    """Packed sequences stay so."""
    assert_type(scaled_dot_product_attention(q, q, q), mh.Ragged[Floats])
    out, cache = scaled_dot_product_attention(q, q, q, return_cache=True)
    assert_type(out, mh.Ragged[Floats])
    assert_type(scaled_dot_product_attention_backward(out, cache)[0], mh.Ragged[Floats])
    grads = scaled_dot_product_attention_backward(out, cache, need_mask_grad=True)
    assert_type(grads[2], mh.Ragged[Floats])
    assert_type(grads[3], Floats | None)
