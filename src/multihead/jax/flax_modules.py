"""Attention for flax's modules: what they call in place of flax's own function."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from multihead.checks import boolean, probability, wrong
from multihead.jax.functional import dot_product_attention

# products of float32's own precision are more than any of these asks for
_PRECISIONS = (None, "default", "fastest", "bfloat16", "tensorfloat32", "float32")
_PRECISIONS += ("high", "highest", *jax.lax.Precision)


def attention_fn(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Any = None,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
    is_causal: bool = False,
) -> Any:
    """Attend, as ``attention_fn`` of flax's `nnx.MultiHeadAttention` and of linen's modules.

    Parameters
    ----------
    query : array of shape (..., L, H, D)
    key : array of shape (..., S, Hk, D)
        Hk divides H.
    value : array of shape (..., S, Hk, Dv)
    bias : array, optional
        Added to the scores; broadcastable to (..., H, L, S).
    mask : array, optional
        Likewise; **True, or not 0 = attend**.
    broadcast_dropout : bool, default True
        All batch entries and heads drop the same weights.
    dropout_rng : JAX key, optional
        Needed where weights are dropped.
    dropout_rate : float, default 0.0
    deterministic : bool, default False
        Drop none.
    dtype : dtype, optional
        Of what is computed; that which the inputs promote to by default.
    precision : optional
        Any that asks for float32 or less.
    module : None
        Weights cannot be sown: they are never in memory.
    force_fp32_for_softmax : bool, default False
        The softmax is of float32, or of float64, in any case.
    einsum_dot_general, qk_attn_weights_einsum, attn_weights_value_einsum : None
    is_causal : bool, default False

    Returns
    -------
    out : array of shape (..., L, H, Dv)

    Raises
    ------
    ValueError
        If something is asked for that the engine does not do, or a shape does not fit.

    Notes
    -----
    A query that sees no key has output 0, where flax's function returns the mean of all values.

    References
    ----------
    https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/attention.html

    Examples
    --------
    >>> import jax
    >>> from flax import nnx
    >>> from multihead.jax import attention_fn
    >>> made = {"num_heads": 2, "in_features": 8, "decode": False}
    >>> layer = nnx.MultiHeadAttention(**made, attention_fn=attention_fn, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((3, 5, 8)), is_causal=True).shape
    (3, 5, 8)
    """
    einsums = {
        "einsum_dot_general": einsum_dot_general,
        "qk_attn_weights_einsum": qk_attn_weights_einsum,
        "attn_weights_value_einsum": attn_weights_value_einsum,
    }
    for name, given in einsums.items():
        if given is not None:
            raise wrong(name, "None: the products are the engine's", type(given).__name__)
    if module is not None:
        expected = "None: sow_weights=False, or multi_head_attention(need_weights=True)"
        raise wrong("module", expected, type(module).__name__)
    if precision not in _PRECISIONS:
        raise wrong("precision", "float32's or less", precision)
    boolean("force_fp32_for_softmax", force_fp32_for_softmax)
    rate = probability("dropout_rate", dropout_rate)
    drops = rate > 0 and not deterministic
    if drops and dropout_rng is None:
        raise wrong("dropout_rng", "a key where dropout_rate is not 0", dropout_rng)

    # Batch axes become one.
    q, k, v = (jnp.asarray(x) for x in (query, key, value))
    if dtype is None:
        dtype = jnp.result_type(q, k, v)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    lead, batch = q.shape[:-3], math.prod(q.shape[:-3])
    if not k.shape[:-3] == v.shape[:-3] == lead:
        raise wrong("key, value", f"the batch axes of query, {lead}", (k.shape[:-3], v.shape[:-3]))
    scores = (q.shape[-2], q.shape[-3], k.shape[-3])
    q, k, v = (x.reshape(batch, *x.shape[-3:]) for x in (q, k, v))
    out = dot_product_attention(
        q,
        k,
        v,
        bias=_folded("bias", bias, lead, scores),
        mask=None if mask is None else _folded("mask", mask, lead, scores).astype(bool),
        is_causal=boolean("is_causal", is_causal),
        dropout_p=rate if drops else 0.0,
        dropout_key=dropout_rng if drops else None,
        broadcast_dropout=broadcast_dropout,
    )
    return out.reshape(*lead, *out.shape[1:])


def _folded(name: str, x: Any, lead: tuple[int, ...], scores: tuple[int, int, int]) -> Any:
    """Return what broadcasts to (..., H, L, S) with one axis for the batch."""
    if x is None:
        return None
    x = jnp.asarray(x)
    full = (*lead, *scores)
    own = (1,) * (len(full) - x.ndim) + x.shape
    if len(own) != len(full) or any(a not in (1, b) for a, b in zip(own, full, strict=True)):
        raise wrong(name, f"a shape that broadcasts to {full}", x.shape)
    x = x.reshape(own)
    rest, batch = own[len(lead) :], math.prod(own[: len(lead)])
    if batch not in (1, math.prod(lead)):  # shared along some of the axes
        x, batch = jnp.broadcast_to(x, (*lead, *rest)), math.prod(lead)
    return x.reshape(batch, *rest)
