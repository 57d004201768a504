"""The whole layer as a function of its parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from multihead.arguments import LayerOptions, LayerTensors
from multihead.arrays import Element, call_element, element_of
from multihead.checks import boolean, probability, wrong_type
from multihead.jax.keys import seed_of
from multihead.jax.layer_form import LayerForm
from multihead.jax.layer_primitives import layer
from multihead.jax.parameters import Asked, Given, read_parameters
from multihead.jax.symbolic import check_lengths
from multihead.layer_rules import LayerRules, layer_rules
from multihead.layouts import DenseSizes, dense_sizes
from multihead.masks import check_attention, check_padding
from multihead.score_rules import Window


def multi_head_attention(
    params: Any,
    query: Any,
    key: Any = None,
    value: Any = None,
    *,
    num_heads: int,
    key_padding_mask: Any = None,
    attn_mask: Any = None,
    is_causal: bool = False,
    need_weights: bool = False,
    average_attn_weights: bool = True,
    dropout_p: float = 0.0,
    dropout_key: Any = None,
    add_zero_attn: bool = False,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    window: Window = None,
    softcap: float | None = None,
    alibi: bool = False,
    rope: Any = None,
    batch_first: bool = True,
) -> Any:
    """Multi-head attention with its projections, as `multihead.MultiheadAttention` has it.

    Implements Vaswani et al., "Attention Is All You Need" (2017). Results and gradients are, bit
    for bit, those of the NumPy layer.

    Parameters
    ----------
    params : mapping
        A tree as of `flax.nnx.MultiHeadAttention` or `flax.linen.MultiHeadDotProductAttention`:
        ``query``, ``key`` and ``value`` with ``kernel`` (E, H, D) and ``bias`` (H, D), those of key
        and value perhaps (kdim, Hk, D), (vdim, Hk, D) and (Hk, D); ``out`` with ``kernel``
        (H, D, E) and ``bias`` (E,). Or a state dict, the NumPy layer's or torch's:
        ``in_proj_weight`` and so on. Biases may be absent; beside either may be ``bias_k``,
        ``bias_v`` (1, 1, Hk * D), a key and a value more, and ``sinks`` (H,). Of one dtype.
    query : array of shape (N, L, E) or (L, E), (L, N, E) without `batch_first`
        float32, float64, float16 or bfloat16, as `params` are; float16 and bfloat16 fit float32
        parameters too.
    key : array of shape (N, S, kdim), optional
        `query` by default.
    value : array of shape (N, S, vdim), optional
        `key` by default.
    num_heads : int
        H.
    key_padding_mask : array of shape (N, S) or (S,), bool or floating, optional
        Keys to ignore: **True = ignore**, as in torch's layer; floats are added to the scores. A
        hidden key is not read.
    attn_mask : array, bool or floating, optional
        (L, S), (N * H, L, S), or 4-D and broadcastable to (N, H, L, S). **True = ignore**, the
        opposite of flax's masks; floats are added to the scores.
    is_causal : bool, default False
        Query i attends to keys j <= i only.
    need_weights : bool, default False
        Return the attention weights too.
    average_attn_weights : bool, default True
        Average the weights over the heads.
    dropout_p : float, default 0.0
        Probability of dropping an attention weight, from 0 to 1.
    dropout_key : JAX key, optional
        Needed where `dropout_p` is not 0: its two words are the seed of the NumPy layer that draws
        the same.
    add_zero_attn : bool, default False
        A key and a value of zeros more.
    num_kv_heads, head_dim : int, optional
        Hk and D: as the shapes of `params` say.
    window : int or tuple of two int or None, optional
        Query i sees keys from ``i - left`` to ``i + right`` only.
    softcap : float, optional
        Scores s become ``softcap * tanh(s / softcap)``.
    alibi : bool, default False
        Scores fall with the distance, by `multihead.functional.alibi_slopes`.
    rope : Rope or tuple (cos, sin), optional
        Rotary positions; a table is constant.
    batch_first : bool, default True
        Batched arrays are (N, L, E) rather than (L, N, E).

    Returns
    -------
    out : array shaped like query
    weights : array
        With `need_weights`: (N, L, S') or, per head, (N, H, L, S'), without N when unbatched; S' is
        S and the columns of `bias_k` and the zero row. After dropout.

    Raises
    ------
    ValueError
        If a shape does not fit, or parameters are missing or unexpected.
    TypeError
        If a dtype does not fit or a flag is no bool.

    Notes
    -----
    First derivatives in reverse mode are the engine's; forward mode and second derivatives are
    composed of JAX's operations, with every score in memory. Under `jax.vmap` with parameters that
    are not mapped there is one call for all entries, except with dropout.

    Examples
    --------
    >>> import jax
    >>> from multihead.jax import multi_head_attention
    >>> keys = jax.random.split(jax.random.key(0), 5)
    >>> params = {
    ...     name: {"kernel": jax.random.normal(k, shape)}
    ...     for name, k, shape in zip(
    ...         ("query", "key", "value", "out"), keys, 3 * [(8, 2, 4)] + [(2, 4, 8)]
    ...     )
    ... }
    >>> x = jax.random.normal(keys[4], (3, 5, 8))
    >>> def loss(params):
    ...     return multi_head_attention(params, x, num_heads=2, is_causal=True).sum()
    >>> jax.grad(loss)(params)["out"]["kernel"].shape
    (2, 4, 8)
    """
    # 1. Arguments.
    asked = Asked(num_heads, num_kv_heads, head_dim, add_zero_attn)
    given = read_parameters(params, asked)
    rules = layer_rules(given.sizes.head, window, softcap, alibi, rope)
    averaged = boolean("average_attn_weights", average_attn_weights)
    average = averaged if boolean("need_weights", need_weights) else None
    p = probability("dropout_p", dropout_p)
    inputs, element = _inputs(given, query, key, value)
    first = boolean("batch_first", batch_first)
    found = dense_sizes(given.sizes, first, *(x.shape for x in inputs))
    masks = _masks(key_padding_mask, attn_mask, given, found, element)
    options = LayerOptions(
        dtype=element.name,
        num_heads=given.sizes.heads,
        key_heads=given.sizes.key_heads,
        head_dim=given.sizes.head,
        zero_row=given.sizes.zero_row,
        causal=boolean("is_causal", is_causal),
        average=average,
        tokens_first=found.tokens_first,
        dropout_p=p,
        seed=None,
        softcap=rules.softcap,
        window_left=rules.window[0],
        window_right=rules.window[1],
        interleaved=rules.flat[-1],
    )

    # 2. Operands: always of a batch, and given once where they are one array.
    q, k, v = (x if found.batched else x[None] for x in inputs)
    k, v = None if inputs[1] is inputs[0] else k, None if inputs[2] is inputs[1] else v
    tensors = LayerTensors(q, k, v, *masks, *given.arrays, *_tables(rules, given, found, element))
    names = [name for name in tensors._fields if getattr(tensors, name) is not None]
    operands = [x for x in tensors if x is not None]
    if p > 0.0:
        operands.append(seed_of(dropout_key))

    # 3. The engine.
    results = layer(LayerForm(tuple(names), options, given.kernels), operands)
    results = results if found.batched else [x[0] for x in results]
    return results[0] if average is None else tuple(results)


def _inputs(given: Given, query: Any, key: Any, value: Any) -> tuple[list[Any], Element]:
    """Take in query, key and value; what is one object stays one."""
    if key is None and value is not None:
        raise wrong_type("key", "an array, as there is a value", "None")
    q = jnp.asarray(query)
    k = q if key is None or key is query else jnp.asarray(key)
    v = k if value is None or value is key else q if value is query else jnp.asarray(value)
    element = call_element(element_of(given.dtype), q)
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.dtype.name != element.name:
            way = f"{name}.astype({element.name!r})"
            raise wrong_type(name, element.name, f"{x.dtype.name} ({way})")
    return [q, k, v], element


def _masks(
    padding: Any, attn: Any, given: Given, found: DenseSizes, element: Element
) -> tuple[Any, Any]:
    """Return key_padding_mask (N, S) and attn_mask of four axes."""
    shape = (found.batch, given.sizes.heads, found.queries, found.keys)
    if padding is not None:
        padding = _mask("key_padding_mask", padding, element)
        columns = (found.batch, found.keys) if found.batched else (found.keys,)
        check_padding(padding.shape, columns, found.tokens_first)
        padding = padding.reshape(found.batch, found.keys)
    if attn is not None:
        attn = _mask("attn_mask", attn, element)
        check_attention(attn.shape, shape)
        if attn.ndim < 4:
            attn = attn.reshape((1, 1, *attn.shape) if attn.ndim == 2 else shape)
    return padding, attn


def _mask(name: str, mask: Any, element: Element) -> Any:
    """Return a mask as bool, or as floats of what is computed in: what is finite stays finite."""
    mask = jnp.asarray(mask)
    if mask.dtype == bool:
        return mask
    if not jnp.issubdtype(mask.dtype, jnp.floating):
        raise wrong_type(name, "bool or floating", f"{mask.dtype.name} ({name} == 0 if 1 keeps)")
    compute = element.compute
    if mask.dtype.itemsize > compute.itemsize:
        most = np.finfo(compute).max
        mask = jnp.where(jnp.isfinite(mask), jnp.clip(mask, -most, most), mask)
    return mask.astype(compute)


def _tables(rules: LayerRules, given: Given, found: DenseSizes, element: Element) -> list[Any]:
    """Return ALiBi's slopes, and cosines and sines of rotary positions."""
    sizes, compute = given.sizes, element.compute
    tables: list[Any] = [rules.slopes(sizes.heads, compute), None, None]
    if rules.rope is not None:
        check_lengths(found.queries, found.keys, "rope")
        length = max(found.queries, found.keys)
        tables[1:] = [x[:, :length] for x in rules.rope.angles(sizes.head, length, compute)]
    return [None if x is None else jnp.asarray(np.ascontiguousarray(x)) for x in tables]
