"""Random layers with all options at once, and what the oracle makes of their calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import multihead as mh
from multihead import reference

ALL: dict[str, Any] = {  # at once, of a layer with four heads
    "num_kv_heads": 2,
    "head_dim": 10,
    "window": 50,
    "softcap": 2.0,
    "alibi": True,
    "sinks": True,
    "rope": mh.Rope(500.0, 6, "interleaved"),
}


@dataclass(frozen=True)
class Drawn:
    """A layer, the options it was made with, and one call of it."""

    layer: mh.MultiheadAttention
    made: dict[str, Any]
    inputs: tuple[np.ndarray, np.ndarray, np.ndarray]
    options: dict[str, Any]

    @property
    def one_input(self) -> bool:
        return self.inputs[0] is self.inputs[1]


def draw(rng: np.random.Generator, dtype: str, longest: int = 150, dropout: float = 0.3) -> Drawn:
    """Draw a layer with random parameters, batch first, and a call of it."""

    def some(low: int, high: int) -> int:
        return int(rng.integers(low, high))

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    key_heads, head_dim = some(1, 4), 2 * some(1, 9)
    heads = key_heads * some(1, 4)
    one_input = chance(0.4)
    embed = heads * head_dim if chance(0.3) else some(3, 40)
    made: dict[str, Any] = {
        "embed_dim": embed,
        "num_heads": heads,
        "num_kv_heads": key_heads,
        "head_dim": head_dim,
        "bias": chance(0.7),
        "add_bias_kv": chance(0.4),
        "add_zero_attn": chance(0.3),
        "kdim": None if one_input else some(2, 20),
        "vdim": None if one_input else some(2, 20),
        "window": (some(0, 60), some(0, 30) if chance(0.5) else None) if chance(0.5) else None,
        "softcap": float(rng.uniform(0.5, 5)) if chance(0.4) else None,
        "alibi": chance(0.4),
        "sinks": chance(0.5),
        "dropout": dropout if chance(0.5) else 0.0,
    }
    if chance(0.7):
        dims = 2 * some(1, head_dim // 2 + 1) if chance(0.5) else None
        layout = "half" if chance(0.5) else "interleaved"
        made["rope"] = mh.Rope(float(rng.uniform(50, 20000)), dims, layout)
    layer = mh.MultiheadAttention(**made, batch_first=True, dtype=dtype, seed=some(0, 99))
    for parameter in layer.parameters().values():
        drawn = rng.normal(size=parameter.shape) / np.sqrt(parameter.shape[-1])
        parameter[...] = drawn.astype(parameter.dtype)
    stored = layer.out_proj.weight.dtype

    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(stored)

    n, length, s = some(1, 4), some(1, longest), some(1, longest)
    query = array(n, length, embed)
    key = query if one_input else array(n, s, layer.kdim)
    value = key if one_input else array(n, s, layer.vdim)
    s = key.shape[1]
    options: dict[str, Any] = {"is_causal": chance(0.5)}
    if chance(0.3):
        options["key_padding_mask"] = rng.random((n, s)) < 0.3
    if chance(0.3):
        options["attn_mask"] = rng.normal(size=(length, s)).astype(dtype.replace("b", ""))
    return Drawn(layer, made, (query, key, value), options)


def oracle(drawn: Drawn, rng_state: tuple[int, int]) -> Any:
    """The oracle's result of the same call."""
    layer, made = drawn.layer, drawn.made
    rope, angles = made.get("rope"), None
    if rope is not None:
        length = max(x.shape[1] for x in drawn.inputs)
        angles = tuple(x.T for x in rope.angles(layer.head_dim, length, "float64"))
    slopes = mh.functional.alibi_slopes(layer.num_heads) if made["alibi"] else None
    return reference.layer.forward(
        {name: x.astype(np.float64) for name, x in layer.parameters().items()},
        *(x.astype(np.float64) for x in drawn.inputs),
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        add_zero_attn=made["add_zero_attn"],
        window=made["window"] or (None, None),
        softcap=made["softcap"],
        alibi_slopes=slopes,
        angles=angles,
        interleaved=rope is not None and rope.layout == "interleaved",
        dropout=made["dropout"],
        seed=rng_state[0],
        counter=rng_state[1],
        **drawn.options,
    )
