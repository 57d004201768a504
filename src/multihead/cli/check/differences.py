"""The oracle's gradients beside central differences of its own results."""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead import reference
from multihead.cli.check.problem import Array, Found, Problem

STEP = 1e-5
N, L, S, E, H, EXTRA = 2, 3, 4, 6, 2, 2
OPTIONS = {"num_heads": H, "add_zero_attn": True, "dropout": 0.3, "softcap": 2.0, "seed": 3}


def oracle(dtype: str) -> list[Problem]:
    """Pose every gradient of a small layer with all that adds one: masks, extra keys, weights."""
    if dtype != "float64":
        return []
    rng = np.random.default_rng(12)
    shapes = {
        "query": (N, L, E),
        "key": (N, S, E),
        "value": (N, S, E),
        "attn_mask": (L, S),
        "key_padding_mask": (N, S),
        "in_proj_weight": (3 * E, E),
        "in_proj_bias": (3 * E,),
        "bias_k": (1, 1, E),
        "bias_v": (1, 1, E),
        "sinks": (H,),
        "out_proj.weight": (E, E),
        "out_proj.bias": (E,),
    }
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    d_out = rng.standard_normal((N, L, E))
    d_weights = rng.standard_normal((N, H, L, S + EXTRA))

    def forward() -> reference.Result:
        of_call = {name: x for name, x in arrays.items() if name in list(shapes)[:5]}
        params = {name: x for name, x in arrays.items() if name not in of_call}
        options: dict[str, Any] = {**OPTIONS, **of_call}
        return reference.forward(params, **options)

    def total() -> float:
        result = forward()
        return float((result.out * d_out).sum() + (result.weights * d_weights).sum())

    def run() -> Found:
        return reference.backward(forward(), d_out, d_weights)

    return [Problem(run, {name: _slope(total, x) for name, x in arrays.items()})]


def _slope(total: Any, x: Array) -> Array:
    """Return the derivative of a sum by each number of x, which is changed and changed back."""
    found = np.empty_like(x)
    for place in np.ndindex(x.shape):
        before = x[place]
        x[place] = before + STEP
        above = total()
        x[place] = before - STEP
        found[place] = (above - total()) / (2 * STEP)
        x[place] = before
    return found
