"""Steps of a layer in NumPy and in JAX, with parameters in either layout."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import multihead as mh
from layer_options import Drawn
from multihead.jax import multi_head_attention

OPTIONS = ("num_heads", "add_zero_attn", "window", "softcap", "alibi", "rope")
INPUTS = ("query", "key", "value")


def kernels(arrays: dict[str, Any], layer: mh.MultiheadAttention) -> dict[str, Any]:
    """Parameters of a layer, or their gradients, in the layout of flax."""
    heads = layer.num_heads, layer.num_kv_heads, layer.num_kv_heads
    ends = np.cumsum([0, *(count * layer.head_dim for count in heads)])
    tree: dict[str, Any] = {}
    for i, (name, count) in enumerate(zip(INPUTS, heads, strict=True)):
        part = slice(ends[i], ends[i + 1])
        packed = arrays.get("in_proj_weight")
        weight = arrays[f"{name[0]}_proj_weight"] if packed is None else packed[part]
        tree[name] = {"kernel": weight.T.reshape(-1, count, layer.head_dim)}
        if "in_proj_bias" in arrays:
            tree[name]["bias"] = arrays["in_proj_bias"][part].reshape(count, -1)
    tree["out"] = {"kernel": arrays["out_proj.weight"].T.reshape(heads[0], layer.head_dim, -1)}
    if "out_proj.bias" in arrays:
        tree["out"]["bias"] = arrays["out_proj.bias"]
    return tree | {name: arrays[name] for name in ("bias_k", "bias_v", "sinks") if name in arrays}


def key_of(seed: int) -> np.ndarray:
    """The key whose dropout is that of a seed."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def keywords(drawn: Drawn) -> dict[str, Any]:
    """What `multi_head_attention` takes beside arrays that have gradients."""
    made = {name: drawn.made.get(name) for name in OPTIONS}
    made["add_zero_attn"] = drawn.made["add_zero_attn"]
    dropout = {}
    if drawn.made["dropout"]:
        seed, _ = drawn.layer.rng_state
        dropout = {"dropout_p": drawn.made["dropout"], "dropout_key": key_of(seed)}
    options = {name: x for name, x in drawn.options.items() if name != "attn_mask"}
    return made | dropout | options | {"need_weights": True, "average_attn_weights": False}


def numpy_step(drawn: Drawn, rng: np.random.Generator) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Results and gradients of a step by name, and the gradients of the results."""
    layer = drawn.layer
    layer.rng_state = (int(rng.integers(2**63)), 0)
    layer.zero_grad()
    seed = layer.rng_state
    results = layer(*drawn.inputs, average_attn_weights=False, **drawn.options)
    layer.rng_state = seed
    d_out, d_weights = (rng.normal(size=x.shape).astype(x.dtype) for x in results)
    into = None
    if drawn.one_input:
        into = (np.empty_like(drawn.inputs[0]),) * 3
    *three, d_mask, _ = layer.backward(d_out, d_weights, out=into, need_mask_grad=True)
    found = dict(zip(("out", "weights", *INPUTS), (*results, *three), strict=True))
    if drawn.one_input:
        del found["key"], found["value"]
    if "attn_mask" in drawn.options:
        found["attn_mask"] = d_mask
    dtype = layer.out_proj.weight.dtype
    found["params"] = {name: x.astype(dtype) for name, x in layer.grads.items()}
    return found, (d_out, d_weights)


def jax_step(drawn: Drawn, params: dict[str, Any], d_results: tuple[Any, Any]) -> dict[str, Any]:
    """The same under `jax.jit`, with these parameters."""
    options = keywords(drawn)
    inputs = drawn.inputs[:1] if drawn.one_input else drawn.inputs

    @jax.jit
    def step(params: Any, inputs: Any, mask: Any) -> Any:
        def forward(params: Any, inputs: Any, mask: Any) -> Any:
            return multi_head_attention(params, *inputs, attn_mask=mask, **options)

        results, transposed = jax.vjp(forward, params, inputs, mask)
        return results, transposed(d_results)

    results, (d_params, d_inputs, d_mask) = step(params, inputs, drawn.options.get("attn_mask"))
    found = dict(zip(("out", "weights"), results, strict=True))
    found |= dict(zip(INPUTS, d_inputs, strict=False))
    if d_mask is not None:
        found["attn_mask"] = d_mask
    return found | {"params": d_params}


def assert_same(found: Any, wanted: Any, note: object = "") -> None:
    """Check that two trees of arrays are equal to the bit."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted), note
    paths = jax.tree_util.tree_leaves_with_path(found)
    for (path, x), y in zip(paths, jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype, (path, note)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), f"{path} {note}")
