"""Apple's BNNS functions, in C, beside the oracle."""

from __future__ import annotations

from ctypes import c_size_t
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multihead import reference
from multihead.cli.check.problem import Found, Numbers, Problem
from multihead.cli.elements import widen

BATCH, TOKENS, WIDTH, HEADS, DIM = 2, 37, 24, 3, 8
STRIDE = TOKENS * WIDTH  # from one sequence to the next
NAMES = ("query", "key", "value")
WEIGHTS = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")


def bnns(dtype: str) -> list[Problem]:
    """Pose forward and backward of a filter, in float32."""
    if dtype != "float32":
        return []
    from multihead import bnns as c  # loads the library

    numbers = Numbers(dtype, 10)
    inputs = {name: numbers.normal(BATCH, TOKENS, WIDTH) for name in NAMES}
    shapes = [*[(WIDTH, DIM, HEADS)] * 3, (HEADS * DIM, WIDTH)]
    weights = [numbers.normal(*shape, scale=WIDTH**-0.5) for shape in shapes]
    d_out = numbers.normal(BATCH, TOKENS, WIDTH)
    params = {name: _as_torch(exact) for name, (_, exact) in zip(WEIGHTS, weights, strict=True)}
    result = reference.forward(params, *[exact for _, exact in inputs.values()], num_heads=HEADS)
    expected = {"out": result.out, **reference.backward(result, d_out[1])}

    def described(target: NDArray[Any], weight: NDArray[Any]) -> c.MHAProjectionParameters:
        """Describe a projection, or its gradients, by the first of its sequences."""
        rows = c.NDArrayDescriptor.from_array(target[0], c.DataLayout.RowMajorMatrix)
        rows.stride[2] = STRIDE
        return c.MHAProjectionParameters(
            target_desc=rows, weights=c.NDArrayDescriptor.from_array(weight)
        )

    def run() -> Found:
        given = [x for x, _ in inputs.values()]
        out = np.zeros_like(d_out[0])
        made = [np.zeros_like(x) for x in given]
        grads = [np.zeros_like(weight) for weight, _ in weights]
        projections = [
            described(x, weight) for x, (weight, _) in zip([*given, out], weights, strict=True)
        ]
        layer = c.LayerParametersMultiheadAttention(
            **dict(zip((*NAMES, "output"), projections, strict=True))
        )
        q, k, v, output = (
            described(x, grad) for x, grad in zip([*made, d_out[0]], grads, strict=True)
        )
        query, key, value = ((x, STRIDE) for x in given)
        with c.Filter(layer) as filter_:
            forward = (filter_, BATCH, *query, *key, None, 0, *value, out, STRIDE, None)
            size = c_size_t()
            c.BNNSApplyMultiheadAttention(*forward, size, None, None, None)
            cache = np.empty(size.value, np.uint8)
            c.BNNSApplyMultiheadAttention(*forward, size, cache, None, None)
            c.BNNSApplyMultiheadAttentionBackward(
                *(filter_, BATCH, *query, q, *key, None, 0, k, *value, v),
                *(None, None, None, None, 0, output, size.value, cache, None, None),
            )
        found = {"out": widen(out), **dict(zip(NAMES, map(widen, made), strict=True))}
        return found | {
            name: _as_torch(widen(grad)) for name, grad in zip(WEIGHTS, grads, strict=True)
        }

    return [Problem(run, expected)]


def _as_torch(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn (E, D, H), or (H * D, E), into (H * D, E), or (E, H * D)."""
    turned: NDArray[np.float64] = weight.T
    return turned if weight.ndim == 2 else turned.reshape(-1, len(weight))
