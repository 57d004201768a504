"""Layers with every option, and calls of them, for the NumPy layer and the torch module alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import multihead as mh
import net_draws
from fuzz import functions
from fuzz.draws import Draws
from magnitudes import magnitudes
from multihead import reference

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (*map(np.dtype, ("float32", "float32", "float64", "float16")), BFLOAT16)


class Call(NamedTuple):
    """A layer's options and a call of it, batch first: inputs and gradients (N, tokens, width)."""

    made: dict[str, Any]
    params: dict[str, Any]
    inputs: tuple[Any, Any, Any]
    options: dict[str, Any]
    d_out: Any
    d_weights: Any
    dtype: np.dtype[Any]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """N, H, L and S."""
        n, length = self.inputs[0].shape[:2]
        return n, self.made["num_heads"], length, self.inputs[1].shape[1]

    @property
    def extra(self) -> int:
        """Keys after those of the call."""
        return int(self.made["add_bias_kv"]) + int(self.made["add_zero_attn"])


def wide(x: Any) -> Any:
    """A float64 copy; bools and nothing as they are."""
    return x if x is None or x.dtype == bool else x.astype(np.float64)


def draw_options(draws: Draws, dtype: np.dtype[Any], of_torch: bool = False) -> dict[str, Any]:
    """Arguments of a constructor that are right."""
    key_heads, group = draws.integers(1, 4), draws.choice([1, 1, 2, 3])
    heads, d = key_heads * group, draws.choice([1, 2, 3, 4, 5, 8, 9, 16, 17])
    plain = draws.flip(0.4)
    if plain:
        key_heads = heads
    embed = heads * d if plain or draws.flip() else draws.integers(1, 30)
    other = draws.flip(0.3)
    made: dict[str, Any] = {
        "embed_dim": embed,
        "num_heads": heads,
        "bias": draws.flip(0.7),
        "add_bias_kv": draws.flip(0.25),
        "add_zero_attn": draws.flip(0.25),
        "dropout": draws.choice([0.0, 0.0, 0.3, 1.0]),
        "kdim": draws.integers(1, 20) if other else None,
        "vdim": draws.integers(1, 20) if other else None,
    }
    if plain:
        return made
    made |= {"num_kv_heads": key_heads, "head_dim": d, "sinks": draws.flip(0.4)}
    if draws.flip(0.4):
        left, right = draws.integers(0, 60), draws.integers(0, 30)
        made["window"] = draws.choice([(left, right), (left, None), (None, right), left])
    if draws.flip(0.3):
        made["softcap"] = draws.uniform(0.5, 5)
    made["alibi"] = draws.flip(0.3)
    if d > 1 and draws.flip(0.4):
        dims = 2 * draws.integers(1, d // 2 + 1)
        made["rope"] = mh.Rope(
            draws.uniform(50, 20000), dims, draws.choice(["half", "interleaved"])
        )
    return made


def parameters(draws: Draws, made: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Random parameters of a layer, by their names."""
    layer = mh.MultiheadAttention(**made, dtype=dtype, seed=0)
    return {
        name: net_draws.normal(draws, x.shape, dtype, x.shape[-1] ** -0.5 if x.ndim == 2 else 0.5)
        for name, x in layer.parameters().items()
    }


def masks(draws: Draws, sizes: tuple[int, int, int, int], dtype: np.dtype[Any]) -> dict[str, Any]:
    """attn_mask and key_padding_mask, True for keys that are hidden."""
    n, h, length, s = sizes
    found: dict[str, Any] = {}
    float_dtype = draws.choice(
        [np.dtype("float32") if dtype == BFLOAT16 else dtype, np.dtype("float64")]
    )
    if draws.flip(0.45):
        four = tuple(x if draws.flip() else 1 for x in sizes)
        shape = draws.choice([(length, s), (n * h, length, s), four])
        kind = draws.choice(["bool", "float"])
        found["attn_mask"] = net_draws.mask_of(draws, kind, shape, float_dtype, True)
    if draws.flip(0.35):
        kind = draws.choice(["bool", "float"])
        found["key_padding_mask"] = net_draws.mask_of(draws, kind, (n, s), float_dtype, True)
    return found


def draw(draws: Draws, dtypes: tuple[np.dtype[Any], ...] = DTYPES) -> Call:
    """A call that is right."""
    dtype = draws.choice(dtypes)
    made = draw_options(draws, dtype)
    n, length, s = functions.lengths(draws)
    width = made["num_heads"] * made.get("head_dim", 17)
    if (
        n * length * s * width > 3_000_000
        or (n * (length + s) * width * made["embed_dim"]) > 4_000_000
    ):
        n, length, s = 1, min(length, 70), min(s, 130)
    one = draws.flip(0.35) and made["kdim"] is None
    s = length if one else s
    kdim, vdim = made["kdim"] or made["embed_dim"], made["vdim"] or made["embed_dim"]
    query = net_draws.normal(draws, (n, length, made["embed_dim"]), dtype)
    key = query if one else net_draws.normal(draws, (n, s, kdim), dtype)
    shares = one or (kdim == vdim and draws.flip(0.4))
    value = key if shares else net_draws.normal(draws, (n, s, vdim), dtype)
    sizes = (n, made["num_heads"], length, s)
    options: dict[str, Any] = masks(draws, sizes, dtype)
    options |= {
        "is_causal": draws.flip(0.35),
        "need_weights": draws.flip(),
        "average_attn_weights": draws.flip(),
    }
    d_weights = None
    if options["need_weights"] and draws.flip():
        heads = () if options["average_attn_weights"] else (sizes[1],)
        columns = s + made["add_bias_kv"] + made["add_zero_attn"]
        d_weights = net_draws.normal(draws, (n, *heads, length, columns), dtype)
    d_out = net_draws.normal(draws, query.shape, dtype)
    params = parameters(draws, made, dtype)
    return Call(made, params, (query, key, value), options, d_out, d_weights, dtype)


class Expected(NamedTuple):
    """What the oracle makes of a call."""

    out: Any
    weights: Any
    grads: dict[str, Any]
    sizes: dict[str, float]


def oracle(call: Call, rng_state: tuple[int, int], training: bool = True) -> Expected:
    """The call in plain float64."""
    made, (n, heads, length, s) = call.made, call.sizes
    rope, angles = made.get("rope"), None
    layer_head = made.get("head_dim") or made["embed_dim"] // heads
    if rope is not None:
        tables = rope.angles(layer_head, max(length, s), "float64")
        angles = tuple(x.T for x in tables)
    window = made.get("window")
    mask = wide(call.options.get("attn_mask"))
    given = None if mask is None else mask.shape
    if mask is not None and mask.ndim == 3:
        mask = mask.reshape(n, heads, length, s)
    result = reference.layer.forward(
        {name: wide(x) for name, x in call.params.items()},
        *(wide(x) for x in call.inputs),
        num_heads=heads,
        num_kv_heads=made.get("num_kv_heads"),
        add_zero_attn=made["add_zero_attn"],
        key_padding_mask=wide(call.options.get("key_padding_mask")),
        attn_mask=mask,
        is_causal=call.options["is_causal"],
        window=window if isinstance(window, tuple) else (window, window),
        softcap=made.get("softcap"),
        alibi_slopes=mh.functional.alibi_slopes(heads) if made.get("alibi") else None,
        angles=angles,
        interleaved=rope is not None and rope.layout == "interleaved",
        dropout=made["dropout"] if training else 0.0,
        seed=rng_state[0],
        counter=rng_state[1],
    )
    d_out, d_weights = wide(call.d_out), wide(call.d_weights)
    grads = reference.backward(result, d_out, d_weights)
    if "attn_mask" in grads:
        grads["attn_mask"] = grads["attn_mask"].reshape(given)
    weights = None
    if call.options["need_weights"]:
        weights = result.weights.mean(1) if call.options["average_attn_weights"] else result.weights
    return Expected(result.out, weights, grads, magnitudes(result, d_out, d_weights))
