"""Biases and masks as the one mask that the engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from multihead.checks import wrong, wrong_type

_POLARITY = {"bias": "floats", "mask": "bool (True means attend here: mask != 0 if 1 means keep)"}


def four_axes(name: str, x: Any, scores: Sequence[int]) -> Any:
    """Take in something that broadcasts to scores (N, H, L, S), as four axes."""
    if x is None:
        return None
    x = jnp.asarray(x)
    kind = jnp.bool_ if name == "mask" else jnp.floating
    if not jnp.issubdtype(x.dtype, kind):
        raise wrong_type(name, _POLARITY[name], x.dtype.name)
    lead = (1,) * (4 - x.ndim) + x.shape
    if len(lead) != 4 or any(a not in (1, b) for a, b in zip(lead, scores, strict=True)):
        fits = x.ndim == 3 and x.shape == (scores[0], *scores[2:])
        way = f" ({name}[:, None] fits)" if fits else ""
        raise wrong(name, f"a shape that broadcasts to {tuple(scores)}", f"{x.shape}{way}")
    return x.reshape(lead)


def combined(bias: Any, mask: Any, compute: Any) -> Any:
    """Return both as one: bool, true shows, or floats that are added."""
    if bias is None:
        return mask
    added = bias.astype(compute)
    return added if mask is None else jnp.where(mask, added, -jnp.inf)
