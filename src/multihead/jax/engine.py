"""The engine's functions as calls of XLA: `multihead_attention_forward` and so on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multihead.jax.call import Options, Tensors

# bits of the attribute `given`, in the order of the operands after query, key and value
_GIVEN = {
    name: 1 << i
    for i, name in enumerate(
        ("mask", "alibi_slopes", "sinks", "query_positions", "key_lengths", "seed")
    )
}


def computed_in(dtype: Any) -> Any:
    """Return the dtype of statistics and of what is added to scores."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def forward(tensors: Tensors, options: Options, keep: bool) -> tuple[Any, Any]:
    """Attend; with `keep` also for backward.

    Parameters
    ----------
    tensors : Tensors
    options : Options
    keep : bool
        Return `out` in what is computed in, and statistics (N, 2, H, L) of the rows.

    Returns
    -------
    out : array (N, L, H, Dv)
    stats : array or None
    """
    q, v = tensors.query, tensors.value
    compute = computed_in(q.dtype)
    n, length, heads, _ = q.shape
    results = [jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), compute if keep else q.dtype)]
    if keep:
        results.append(jax.ShapeDtypeStruct((n, 2, heads, length), compute))
    found = _call("multihead_attention_forward", results, tensors, options)
    return found[0], found[1] if keep else None


def _call(target: str, results: Any, tensors: Tensors, options: Options, *more: Any) -> Any:
    given = sum(bit for name, bit in _GIVEN.items() if getattr(tensors, name) is not None)
    call = jax.ffi.ffi_call(target, results, vmap_method="expand_dims")
    return call(
        *(x for x in tensors if x is not None),
        *more,
        causal=options.causal,
        dropout_p=np.float64(options.dropout_p),
        given=np.int64(given),
        scale=np.float64(options.scale),
        softcap=np.float64(options.softcap),
        window_left=np.int64(options.window_left),
        window_right=np.int64(options.window_right),
    )
