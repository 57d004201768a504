"""`jax.nn.dot_product_attention` on the engine."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from multihead.checks import boolean, dims, number, probability, wrong, wrong_type
from multihead.jax.call import COMPUTED, Options, Tensors, computed_in
from multihead.jax.derivatives import Request, attend
from multihead.jax.keys import seed_of
from multihead.jax.manual import varying_alike
from multihead.jax.masks import combined, four_axes
from multihead.jax.positions import integers, positions
from multihead.score_rules import Window, cap_of, sides_of


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: Any = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    dropout_p: float = 0.0,
    dropout_key: Any = None,
    broadcast_dropout: bool = False,
    return_lse: bool = False,
) -> Any:
    """Compute ``softmax(query keyᵀ · scale + bias) value`` for every batch entry and head.

    The first parameters, their order, shapes and axes are those of
    `jax.nn.dot_product_attention`. Runs under `jax.jit`, `grad`, `jvp`, `vmap`, `checkpoint`,
    `scan`, `shard_map`, and over the devices of a mesh.

    Parameters
    ----------
    query : array of shape (N, L, H, D) or (L, H, D)
        Of float32, float64, or of float16 and bfloat16, which are computed in float32.
    key : array of shape (N, S, Hk, D) or (S, Hk, D)
        Of its dtype. Hk divides H: a head of keys serves H / Hk heads of queries side by side.
    value : array of shape (N, S, Hk, Dv) or (S, Hk, Dv)
        Likewise.
    bias : array, optional
        Added to the scaled scores; broadcastable to (N, H, L, S), of four axes, or of fewer where
        the first are 1.
    mask : array of bool, optional
        Likewise; **True = attend**.
    scale : float or array of shape (), optional
        Factor of the scores; ``1 / sqrt(D)`` by default. An array of JAX's, which may be traced and
        has a gradient, multiplies `query` instead, in what is computed in.
    is_causal : bool, default False
        The query at position p attends to keys j <= p only.
    query_seq_lengths : array of int (N,), optional
        Queries from there on have output 0.
    key_value_seq_lengths : array of int (N,), optional
        `key_lengths` of which those beyond S mean S.
    local_window_size : int or tuple of two int, optional
        As `window`.
    implementation : str, optional
        None or "xla"; there is one.
    return_residual : bool, default False
        Return the rows' logarithms (N, L, H), too, in the dtype of `key` and without a gradient.
    window : int or tuple of two (int or None), optional
        ``(left, right)``: the query at position p attends to keys p - left <= j <= p + right only;
        None: without a limit on that side. An int is both.
    query_offset : int, array of int (N,) or "end", default 0
        Query i stands at position query_offset + i among the keys, for `is_causal`, `window` and
        `alibi_slopes`. "end": the last query stands on the last key.
    key_lengths : array of int (N,), optional
        Keys of a sequence from there on do not exist, and are never read.
    softcap : float, optional
        Scaled scores s become ``softcap * tanh(s / softcap)``, before masks and ALiBi.
    alibi_slopes : array of shape (H,) or (N, H), optional
        Scores lose ``slope * |position of query - position of key|``. It has no gradient.
    sinks : array of shape (H,), optional
        A score of each head that joins the softmax and has no value.
    dropout_p : float, default 0.0
        Probability of dropping an attention weight, from 0 to 1.
    dropout_key : JAX key, optional
        Needed where `dropout_p` is not 0: the seed is the key's two words.
    broadcast_dropout : bool, default False
        All batch entries and heads drop the same weights, as flax's modules ask by default.
    return_lse : bool, default False
        Return the logarithm of the sum of the exponentials of each query's scores, too, with its
        gradient.

    Returns
    -------
    out : array of shape (N, L, H, Dv) or (L, H, Dv)
    residual : array of shape (N, L, H) or (L, H)
        With `return_residual`.
    lse : array of shape (N, H, L) or (H, L)
        With `return_lse`: of float32, or float64 where that is computed in; -inf where a query sees
        no key.

    Raises
    ------
    ValueError
        If a shape does not fit, or a number is out of range.
    TypeError
        If a dtype does not fit, or a flag is no bool.

    Notes
    -----
    A query that sees no key has output 0 and gradients 0, where `jax.nn.dot_product_attention`
    returns the mean of all values. Values of traced arrays are checked when they are there: lengths
    and offsets out of range are errors of XLA's, whose messages name them. First derivatives in
    reverse mode are the engine's, in memory linear in L; forward mode and further derivatives
    compute every score in JAX's operations.

    References
    ----------
    https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html

    Examples
    --------
    >>> import jax
    >>> from multihead.jax import dot_product_attention
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 8))
    >>> ours = jax.jit(dot_product_attention)(q, k, v)
    >>> theirs = jax.nn.dot_product_attention(q, k, v)
    >>> bool(abs(ours - theirs).max() < 1e-6)
    True
    """
    if implementation not in (None, "xla"):
        raise wrong("implementation", 'None or "xla"', repr(implementation))
    is_causal, return_lse = boolean("is_causal", is_causal), boolean("return_lse", return_lse)
    return_residual = boolean("return_residual", return_residual)

    # 1. Inputs: types, shapes and dtypes are checked.
    q, k, v = map(jnp.asarray, (query, key, value))
    _check(q, k, v)
    whole = q.ndim == 4
    if not whole:
        q, k, v = q[None], k[None], v[None]
    n, length, heads, width = q.shape
    scores = (n, heads, length, k.shape[1])
    compute = computed_in(q.dtype)

    # 2. What stands between scores and the softmax.
    sides = sides_of(window)
    if local_window_size is not None:
        if window is not None:
            raise wrong("local_window_size", "None beside window", local_window_size)
        sides = sides_of(local_window_size)
    lengths = integers("key_lengths", key_lengths, n)
    if key_value_seq_lengths is not None:
        if lengths is not None:
            raise wrong("key_value_seq_lengths", "None beside key_lengths", "both")
        clipped = integers("key_value_seq_lengths", key_value_seq_lengths, n)
        lengths = jnp.clip(clipped, 0, scores[3])
    of_queries = integers("query_seq_lengths", query_seq_lengths, n)
    p = probability("dropout_p", dropout_p)
    shared = boolean("broadcast_dropout", broadcast_dropout)
    tensors = Tensors(
        q,
        k,
        v,
        combined(four_axes("bias", bias, scores), four_axes("mask", mask, scores), compute),
        _slopes(alibi_slopes, n, heads, compute),
        _sinks(sinks, heads, compute),
        positions(query_offset, n, length, scores[3] if lengths is None else lengths),
        lengths,
        seed_of(dropout_key) if p else None,
    )
    factor = 1.0
    if isinstance(scale, jax.Array):
        tensors = tensors._replace(query=_scaled(q, scale))
    elif scale is not None:
        factor = number("scale", scale)
    elif jax.export.is_symbolic_dim(width):
        raise wrong("scale", f"a number, as the width of query is symbolic: {width}", scale)
    elif width:
        factor = width**-0.5
    options = Options(factor, is_causal, cap_of(softcap), *sides, p, shared)

    # 3. The engine.
    statistic = return_lse or return_residual
    out, *rows = attend(Request(options, statistic), varying_alike(tensors))

    # 4. Results in the caller's axes.
    if of_queries is not None:
        there = jnp.arange(length)[None] < of_queries[:, None]
        out = jnp.where(there[..., None, None], out, 0)
        rows = [jnp.where(there[:, None], lse, -jnp.inf) for lse in rows]
    results = [out]
    if return_residual:
        residual = rows[0].swapaxes(1, 2).astype(k.dtype)
        results.append(jax.lax.stop_gradient(residual))
    if return_lse:
        results += rows
    if not whole:
        results = [x[0] for x in results]
    return results[0] if len(results) == 1 else tuple(results)


def _check(q: Any, k: Any, v: Any) -> None:
    """Raise unless queries, keys and values go together."""
    if q.dtype.name not in COMPUTED:
        raise wrong_type("query", " or ".join(COMPUTED), q.dtype.name)
    for name, x in (("key", k), ("value", v)):
        if x.dtype != q.dtype:
            raise wrong_type(name, f"{q.dtype.name}, as query", x.dtype.name)
    if q.ndim not in (3, 4):
        raise wrong("query", "(N, L, H, D) or (L, H, D)", q.shape)
    lead, width = q.shape[:-3], q.shape[-1]
    if k.ndim != q.ndim or k.shape[:-3] != lead or k.shape[-1] != width:
        raise wrong("key", dims(*lead, "S", "Hk", width), k.shape)
    if k.shape[-2] < 1 or q.shape[-2] % k.shape[-2]:
        raise wrong("key", f"a number of heads that divides {q.shape[-2]}", k.shape[-2])
    if v.shape[:-1] != k.shape[:-1]:
        raise wrong("value", dims(*k.shape[:-1], "Dv"), v.shape)


def _scaled(q: Any, scale: Any) -> Any:
    """Multiply queries by a scale, rounding once."""
    if not any(jnp.issubdtype(scale.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise wrong_type("scale", "a number", scale.dtype.name)
    if scale.ndim:
        raise wrong("scale", "a number or an array of shape ()", scale.shape)
    compute = computed_in(q.dtype)
    return (q.astype(compute) * scale.astype(compute)).astype(q.dtype)


def _slopes(x: Any, n: int, heads: int, compute: Any) -> Any:
    if x is None:
        return None
    x = jnp.asarray(x)
    if x.shape not in ((heads,), (n, heads)):
        raise wrong("alibi_slopes", f"{dims(heads)} or {dims(n, heads)}", x.shape)
    return jnp.atleast_2d(x).astype(compute)


def _sinks(x: Any, heads: int, compute: Any) -> Any:
    if x is None:
        return None
    x = jnp.asarray(x)
    if x.shape != (heads,):
        raise wrong("sinks", dims(heads), x.shape)
    return x.astype(compute)
