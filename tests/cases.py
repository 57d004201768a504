"""Random layers and inputs, and one step of the layer and of the oracle on the same options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import multihead as mh
from magnitudes import magnitudes
from multihead import reference

MASKS = ("none", "bool 2-D", "float 2-D", "bool 3-D", "float 3-D", "bool 4-D", "float 4-D")
PADDING = ("none", "bool", "float")
WEIGHTS = ("none", "average", "per head")
LAYOUTS = ("batch first", "sequence first", "unbatched")


@dataclass(frozen=True)
class Construction:
    """What the constructor of the layer is told."""

    embed_dim: int = 12
    num_heads: int = 3
    bias: bool = True
    add_bias_kv: bool = False
    add_zero_attn: bool = False
    kdim: int | None = None
    vdim: int | None = None
    dropout: float = 0.0
    layout: str = "batch first"
    dtype: str = "float64"

    @property
    def extra_keys(self) -> int:
        return self.add_bias_kv + self.add_zero_attn


@dataclass(frozen=True)
class Call:
    """What one call of the layer is told, in the layer's layout and dtype."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    d_out: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)
    d_weights: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """The results of one forward and backward; the oracle's with the sizes of `magnitudes`."""

    out: np.ndarray
    weights: np.ndarray | None
    grads: dict[str, np.ndarray]
    sizes: dict[str, float] = field(default_factory=dict)


def make_layer(how: Construction, rng: np.random.Generator) -> mh.MultiheadAttention:
    """A layer in training mode whose parameters, biases too, are random."""
    layer = mh.MultiheadAttention(
        how.embed_dim,
        how.num_heads,
        dropout=how.dropout,
        bias=how.bias,
        add_bias_kv=how.add_bias_kv,
        add_zero_attn=how.add_zero_attn,
        kdim=how.kdim,
        vdim=how.vdim,
        batch_first=how.layout == "batch first",
        dtype=np.dtype(how.dtype),
        seed=int(rng.integers(2**32)),
    )
    layer.load_state_dict(
        {
            name: (
                rng.standard_normal(x.shape) / np.sqrt(x.shape[-1] if x.ndim == 2 else 4)
            ).astype(x.dtype)
            for name, x in layer.state_dict().items()
        }
    )
    layer.train()
    return layer


def make_mask(
    kind: str, shape: tuple[int, int, int, int], dtype: str, rng: np.random.Generator
) -> Any:
    """An attn_mask; float ones hold -inf as well as numbers."""
    n, h, length, s = shape
    if kind == "none":
        return None
    size = {
        "2-D": (length, s),
        "3-D": (n * h, length, s),
        "4-D": (n, 1, length, s) if (length + s) % 2 else (1, h, 1, s),
    }[kind.split()[1]]
    hides = rng.random(size) < 0.3
    if kind.startswith("bool"):
        return hides
    return np.where(hides, -np.inf, rng.standard_normal(size)).astype(dtype)


def make_padding(kind: str, n: int, s: int, dtype: str, rng: np.random.Generator) -> Any:
    """A key_padding_mask with holes."""
    if kind == "none":
        return None
    hides = rng.random((n, s)) < 0.3
    return (
        hides
        if kind == "bool"
        else np.where(hides, -np.inf, rng.standard_normal((n, s))).astype(dtype)
    )


def make_call(
    how: Construction,
    rng: np.random.Generator,
    n: int = 2,
    length: int = 5,
    s: int = 7,
    *,
    mask: str = "none",
    padding: str = "none",
    is_causal: bool = False,
    weights: str = "none",
) -> Call:
    """Random inputs and gradients of the outputs; `n` is 1 where the layout has no batch."""
    n = 1 if how.layout == "unbatched" else n
    e, dtype = how.embed_dim, np.dtype(how.dtype)

    def normal(*shape: int) -> np.ndarray:
        return to_layout(rng.standard_normal(shape).astype(dtype), how.layout)

    options: dict[str, Any] = {"is_causal": is_causal, "need_weights": weights != "none"}
    options["average_attn_weights"] = weights != "per head"
    options["attn_mask"] = make_mask(mask, (n, how.num_heads, length, s), how.dtype, rng)
    padding_mask = make_padding(padding, n, s, how.dtype, rng)
    if padding_mask is not None and how.layout == "unbatched":
        padding_mask = padding_mask[0]
    options["key_padding_mask"] = padding_mask
    d_weights = None
    if weights != "none":
        heads = (how.num_heads,) if weights == "per head" else ()
        batch = () if how.layout == "unbatched" else (n,)
        d_weights = rng.standard_normal((*batch, *heads, length, s + how.extra_keys)).astype(dtype)
    return Call(
        normal(n, length, e),
        normal(n, s, how.kdim or e),
        normal(n, s, how.vdim or e),
        normal(n, length, e),
        options,
        d_weights,
    )


def to_layout(x: np.ndarray, layout: str) -> np.ndarray:
    """Turn (N, L, E) into the layout of the layer."""
    if layout == "unbatched":
        return x[0]
    return x if layout == "batch first" else np.ascontiguousarray(x.swapaxes(0, 1))


def from_layout(x: np.ndarray, layout: str) -> np.ndarray:
    """Turn the layout of the layer into (N, L, E)."""
    if layout == "unbatched":
        return x[None]
    return x if layout == "batch first" else x.swapaxes(0, 1)


def layer_step(layer: mh.MultiheadAttention, call: Call) -> Step:
    """One forward and backward of the layer, every gradient that there is."""
    layer.zero_grad()
    out, weights = layer(call.query, call.key, call.value, **call.options)
    *d_inputs, d_mask, d_padding = layer.backward(call.d_out, call.d_weights, need_mask_grad=True)
    grads = dict(zip(("query", "key", "value"), d_inputs, strict=True))
    grads |= {name: grad.copy() for name, grad in layer.grads.items()}
    if d_mask is not None:
        grads["attn_mask"] = d_mask
    if d_padding is not None:
        grads["key_padding_mask"] = d_padding
    return Step(out, weights, grads)


def oracle_result(
    params: Mapping[str, np.ndarray],
    how: Construction,
    call: Call,
    rng_state: tuple[int, int] = (0, 0),
) -> reference.Result:
    """The same forward by the oracle, batch first."""
    layout, heads = how.layout, how.num_heads
    inputs = [from_layout(x, layout) for x in (call.query, call.key, call.value)]
    mask, padding = call.options.get("attn_mask"), call.options.get("key_padding_mask")
    if mask is not None and mask.ndim == 3:
        mask = mask.reshape(len(mask) // heads, heads, *mask.shape[1:])
    if padding is not None and layout == "unbatched":
        padding = padding[None]
    return reference.forward(
        params,
        *inputs,
        num_heads=heads,
        key_padding_mask=padding,
        attn_mask=mask,
        is_causal=call.options.get("is_causal", False),
        add_zero_attn=how.add_zero_attn,
        dropout=how.dropout,
        seed=rng_state[0],
        counter=rng_state[1],
    )


def oracle_weights(result: reference.Result, call: Call) -> np.ndarray | None:
    """The weights that a call asks for, batch first."""
    if not call.options.get("need_weights", True):
        return None
    average = call.options.get("average_attn_weights", True)
    return result.weights.mean(1) if average else result.weights


def oracle_step(
    params: Mapping[str, np.ndarray],
    how: Construction,
    call: Call,
    rng_state: tuple[int, int] = (0, 0),
) -> Step:
    """The same step by the oracle, results in the layer's layout."""
    layout, result = how.layout, oracle_result(params, how, call, rng_state)
    d_weights = call.d_weights
    if d_weights is not None and layout == "unbatched":
        d_weights = d_weights[None]
    d_out = from_layout(call.d_out, layout)
    grads = reference.backward(result, d_out, d_weights)
    for name in ("query", "key", "value"):
        grads[name] = to_layout(grads[name], layout)
    if "attn_mask" in grads:
        grads["attn_mask"] = grads["attn_mask"].reshape(call.options["attn_mask"].shape)
    if "key_padding_mask" in grads:
        grads["key_padding_mask"] = grads["key_padding_mask"].reshape(
            call.options["key_padding_mask"].shape
        )
    weights = oracle_weights(result, call)
    if weights is not None and layout == "unbatched":
        weights = weights[0]
    sizes = magnitudes(result, d_out, d_weights)
    return Step(to_layout(result.out, layout), weights, grads, sizes)
