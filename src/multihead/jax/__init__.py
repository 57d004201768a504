"""Multi-head attention for JAX on the CPU: `jax.nn.dot_product_attention` on our engine.

Import it explicitly; the package itself never imports JAX.
"""

from __future__ import annotations

from multihead.jax import requires  # noqa: F401 (first: it checks JAX, and registers the engine)
from multihead.jax.flax_modules import attention_fn
from multihead.jax.functional import dot_product_attention
from multihead.jax.layer import multi_head_attention

__all__ = ["attention_fn", "dot_product_attention", "multi_head_attention"]
