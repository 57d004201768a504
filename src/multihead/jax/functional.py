"""`jax.nn.dot_product_attention` on the engine."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from multihead.jax.call import Options, Tensors
from multihead.jax.engine import forward


def dot_product_attention(
    query: Any, key: Any, value: Any, *, scale: float | None = None, is_causal: bool = False
) -> Any:
    """Compute ``softmax(query keyᵀ · scale) value`` for every batch entry and head."""
    q, k, v = map(jnp.asarray, (query, key, value))
    lead = q.shape[:-3]
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out, _ = forward(Tensors(q, k, v), Options(factor, is_causal), keep=False)
    return out.reshape(*lead, *out.shape[1:])
