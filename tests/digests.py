"""Hashes of the bits that the layer computes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

import multihead as mh
from cases import Construction, layer_step, make_call, make_layer

CASES: dict[str, tuple[Construction, tuple[int, int, int], dict[str, Any]]] = {
    "small": (Construction(), (2, 5, 7), {"weights": "per head"}),
    "skinny": (Construction(64, 4), (1, 1, 700), {}),
    "odd": (Construction(69, 3, dropout=0.1), (3, 131, 67), {"weights": "average"}),
    "causal": (Construction(64, 2, dropout=0.2), (2, 300, 300), {"is_causal": True}),
    "masked": (
        Construction(51, 3, add_bias_kv=True, add_zero_attn=True, kdim=20, vdim=33),
        (2, 90, 210),
        {"mask": "float 3-D", "padding": "float", "weights": "average"},
    ),
    "wide heads": (Construction(300, 1), (1, 70, 65), {"mask": "bool 4-D", "padding": "bool"}),
    "long": (Construction(128, 2), (1, 600, 600), {}),
    "many short": (Construction(40, 4, dropout=0.1), (12, 33, 21), {"weights": "average"}),
    "many tokens": (Construction(92, 2, kdim=50, vdim=34), (9, 240, 237), {"padding": "bool"}),
}


def digest(*arrays: np.ndarray | None) -> str:
    """A hash of the bits of some arrays."""
    sha = hashlib.sha256()
    for x in arrays:
        if x is not None:
            sha.update(np.ascontiguousarray(x).tobytes())
    return sha.hexdigest()[:16]


def step_digest(name: str, dtype: str) -> str:
    """The hash of one step of a case: outputs, weights and every gradient."""
    how, sizes, options = CASES[name]
    how = Construction(**(vars(how) | {"dtype": dtype}))
    rng = np.random.default_rng(len(name))
    layer = make_layer(how, rng)
    call = make_call(how, rng, *sizes, **options)
    step = layer_step(layer, call)
    grads = [step.grads[key] for key in sorted(step.grads)]
    assert all(np.isfinite(x).all() for x in (step.out, *grads))
    return digest(step.out, step.weights, *grads)


def ragged_digest(dtype: str) -> str:
    """The hash of a ragged step."""
    how = Construction(48, 3, dropout=0.1, dtype=dtype)
    rng = np.random.default_rng(9)
    layer = make_layer(how, rng)
    x = mh.Ragged.from_list(
        [rng.standard_normal((n, 48)).astype(dtype) for n in (3, 0, 250, 1, 64, 17, 130)]
    )
    out, weights = layer(x, x, x, is_causal=True)
    grads = layer.backward(out)
    parameters = [layer.grads[key] for key in sorted(layer.grads)]
    return digest(out.values, *weights, *(grad.values for grad in grads), *parameters)


def digests() -> dict[str, str]:
    """The hashes of every case in both dtypes."""
    found = {}
    for dtype in ("float32", "float64"):
        for name in CASES:
            found[f"{name}, {dtype}"] = step_digest(name, dtype)
        found[f"ragged, {dtype}"] = ragged_digest(dtype)
    return found
