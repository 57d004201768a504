"""Random options of attention, and the oracle's call with the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead import reference


def drawn_options(
    rng: np.random.Generator, sizes: tuple[int, int, int, int], names: list[str]
) -> dict[str, Any]:
    """Keyword arguments of a call whose scores are (N, H, L, S)."""
    n, heads, length, s = sizes
    some: dict[str, Any] = {}
    if "causal" in names:
        some["is_causal"] = True
    if "window" in names:
        left, right = rng.integers(0, 150, 2).tolist()
        some["window"] = [(left, right), (left, None), (None, right), left][rng.integers(4)]
    if "offset" in names:
        some["query_offset"] = ["end", 5, rng.integers(-20, s + 1, n)][rng.integers(3)]
    if "lengths" in names:
        some["key_lengths"] = rng.integers(0, s + 1, n)
    if "softcap" in names:
        some["softcap"] = float(rng.uniform(0.5, 5))
    if "alibi" in names:
        some["alibi_slopes"] = rng.uniform(0, 0.3, [(heads,), (n, heads)][rng.integers(2)])
    if "sinks" in names:
        some["sinks"] = rng.standard_normal(heads)
    if "mask" in names:
        full = (n, heads, length, s)
        some["attn_mask"] = [rng.random(full) < 0.7, rng.standard_normal((length, s))][
            rng.integers(2)
        ]
    if "dropout" in names:
        some |= {"dropout_p": 0.3, "seed": 5}
    return some


def oracle(q: Any, k: Any, v: Any, options: dict[str, Any]) -> reference.AttentionResult:
    """The same call in plain float64."""
    rules = dict(options)
    mask, window = rules.pop("attn_mask", None), rules.pop("window", None)
    if mask is not None and mask.dtype == bool:
        mask = ~mask
    n, s, lengths = q.shape[0], k.shape[2], rules.get("key_lengths")
    offset = rules.pop("query_offset", 0)
    if isinstance(offset, str):
        offset = (np.full(n, s) if lengths is None else lengths) - q.shape[2]
    return reference.attention(
        q,
        k,
        v,
        mask,
        window=window if isinstance(window, tuple) else (window, window),
        query_positions=np.broadcast_to(offset, n),
        dropout=rules.pop("dropout_p", 0.0),
        **rules,
    )
