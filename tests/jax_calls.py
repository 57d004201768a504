"""One call of attention in JAX and in NumPy: its results and all gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multihead import functional
from multihead.jax import dot_product_attention

SEED = 5 << 32 | 7
KEY = np.array([5, 7], np.uint32)


def drawn(
    rng: np.random.Generator, sizes: tuple[int, ...], dtype: Any = np.float32
) -> tuple[Any, ...]:
    """Query, key and value of (N, L, S, H, Hk, D, Dv), tokens before heads."""
    n, length, s, heads, of_keys, width, of_values = sizes
    shapes = (n, length, heads, width), (n, s, of_keys, width), (n, s, of_keys, of_values)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def of_jax(options: dict[str, Any]) -> dict[str, Any]:
    """Say what `options` of NumPy's function say to JAX's."""
    some = dict(options)
    mask = some.pop("attn_mask", None)
    if mask is not None:
        some["mask" if mask.dtype == bool else "bias"] = mask
    if some.pop("seed", None) is not None:
        some["dropout_key"] = KEY
    return some


def in_jax(
    inputs: tuple[Any, ...], options: dict[str, Any], d_out: Any, d_lse: Any
) -> dict[str, Any]:
    """Compute out, lse and the gradients of what is smooth."""
    some = of_jax(options)
    smooth = dict(zip(("query", "key", "value"), map(jnp.asarray, inputs), strict=True))
    smooth |= {name: jnp.asarray(some.pop(name)) for name in ("bias", "sinks") if name in some}

    @jax.jit
    def both(given: dict[str, Any], cotangents: Any) -> Any:
        function = lambda x: dot_product_attention(**x, **some, return_lse=True)  # noqa: E731
        results, transposed = jax.vjp(function, given)
        return results, transposed(cotangents)[0]

    (out, lse), gradients = both(smooth, (jnp.asarray(d_out), jnp.asarray(d_lse)))
    return {"out": out, "lse": lse, **gradients}


def in_numpy(
    inputs: tuple[Any, ...], options: dict[str, Any], d_out: Any, d_lse: Any
) -> dict[str, Any]:
    """Compute the same."""
    some = dict(options)
    if "seed" in some:
        some["seed"] = SEED
    out, lse, cache = functional.scaled_dot_product_attention(
        *map(heads_first, inputs), **some, enable_gqa=True, return_lse=True, return_cache=True
    )
    *three, d_mask, d_sinks = functional.scaled_dot_product_attention_backward(
        heads_first(d_out), cache, need_mask_grad=True, need_sink_grad=True, d_lse=d_lse
    )
    found = dict(zip(("query", "key", "value"), map(heads_first, three), strict=True))
    found |= {"out": heads_first(out), "lse": lse, "bias": d_mask, "sinks": d_sinks}
    return {name: x for name, x in found.items() if x is not None}


def heads_first(x: Any) -> Any:
    """Swap the axes of tokens and heads."""
    return np.swapaxes(x, 1, 2)
