"""Attention without projections beside the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead import reference
from multihead.cli.check.problem import Found, Numbers, Problem
from multihead.cli.elements import widen
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

N, H, GROUPS, L, S, D, DV = 2, 4, 2, 37, 70, 17, 21


def functional(dtype: str) -> list[Problem]:
    """Pose a boolean mask and dropout; an additive mask; everything that today's models have."""
    numbers = Numbers(dtype, 9)
    sees = ~numbers.hidden(N, H, L, S)
    added = numbers.mask(N, 1, L, S)
    sinks, exact_sinks = numbers.normal(H)
    compute = "float64" if dtype == "float64" else "float32"
    slopes = (2.0 ** -np.arange(1, 1 + H)).astype(compute)
    rules = {"window": (30, 9), "softcap": 3.0, "alibi_slopes": slopes, "is_causal": True}
    placed = {"key_lengths": np.array([S, 51])}
    return [
        _problem(
            numbers,
            {"attn_mask": sees, "dropout_p": 0.3, "seed": 11},
            {"attn_mask": ~sees, "dropout": 0.3, "seed": 11},
        ),
        _problem(numbers, {"attn_mask": added}, {"attn_mask": added}),
        _problem(
            numbers,
            {**rules, **placed, "query_offset": np.array([33, 14]), "sinks": sinks},
            {**rules, **placed, "query_positions": np.array([33, 14]), "sinks": exact_sinks},
        ),
    ]


def _problem(numbers: Numbers, told: dict[str, Any], rules: dict[str, Any]) -> Problem:
    """Pose forward and backward; the function is told `told`, the oracle `rules`."""
    q, k = numbers.normal(N, H, L, D), numbers.normal(N, GROUPS, S, D)
    v, d_out = numbers.normal(N, GROUPS, S, DV), numbers.normal(N, H, L, DV)
    result = reference.attention(q[1], k[1], v[1], **rules)
    grads = reference.attention_backward(result, d_out[1])
    expected = {"out": result.out, "lse": result.lse, **grads._asdict()}
    mask = told.get("attn_mask")
    scores = expected.pop("scores")
    if mask is not None and mask.dtype != bool:
        expected["mask"] = scores.sum(1, keepdims=True)
    if "sinks" not in told:
        expected.pop("sinks")
    gradients = {"need_mask_grad": "mask" in expected, "need_sink_grad": "sinks" in expected}
    names = ["q", "k", "v", *(name for name in ("mask", "sinks") if name in expected)]

    def run() -> Found:
        out, lse, cache = scaled_dot_product_attention(
            q[0], k[0], v[0], enable_gqa=True, return_lse=True, return_cache=True, **told
        )
        found = scaled_dot_product_attention_backward(d_out[0], cache, **gradients)
        results = {"out": out, "lse": lse, **dict(zip(names, found, strict=True))}
        return {name: widen(x) for name, x in results.items()}

    return Problem(run, expected)
