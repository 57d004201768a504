"""What a call of attention is given: tensors, which are traced, and options, which are not."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp


class Tensors(NamedTuple):
    """The tensors of a call, or the gradients of these; None: there is none.

    Attributes
    ----------
    query, key, value
        (N, L, H, D), (N, S, Hk, D) and (N, S, Hk, Dv).
    mask
        (1 or N, 1 or H, 1 or L, 1 or S): bool, true shows, or floats of what is computed in.
    alibi_slopes
        (1 or N, H), of what is computed in.
    sinks
        (H,), likewise.
    query_positions, key_lengths
        (1 or N,) of int32 or int64.
    seed
        (2,) of uint32, the upper half first.
    """

    query: Any
    key: Any
    value: Any
    mask: Any = None
    alibi_slopes: Any = None
    sinks: Any = None
    query_positions: Any = None
    key_lengths: Any = None
    seed: Any = None


class Options(NamedTuple):
    """What a call says beside its tensors.

    Attributes
    ----------
    scale : float
    causal : bool
    softcap : float
        0: none.
    window_left, window_right : int
        Keys seen beside a query's own place; -1: all.
    dropout_p : float
        Acts where there is a seed.
    broadcast_dropout : bool
        All sequences and heads drop the same.
    """

    scale: float
    causal: bool = False
    softcap: float = 0.0
    window_left: int = -1
    window_right: int = -1
    dropout_p: float = 0.0
    broadcast_dropout: bool = False


def computed_in(dtype: Any) -> Any:
    """Return the dtype of statistics and of what is added to scores."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


COMPUTED = ("float32", "float64", "bfloat16", "float16")
