"""What a call of the layer says beside its tensors, and the order of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

# Of a call, and of its gradients. A value that is the key is None, a key that is the query too.
TENSORS = (
    "query",
    "key",
    "value",
    "padding",
    "mask",
    "in_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
    "out_weight",
    "out_bias",
)
PARAMETERS = slice(5, None)


def three(tensors: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return query, key and value of a call."""
    query, key, value = tensors[:3]
    key = query if key is None else key
    return query, key, key if value is None else value


class Options(NamedTuple):
    """Options of one call; the engine's faces read them by position.

    Attributes
    ----------
    num_heads : int
    zero_row : bool
        A key and a value of zeros more.
    causal : bool
    average : bool or None
        Weights averaged over the heads, or for each; None: no weights.
    tokens_first : bool
        Inputs are (tokens, N, features).
    probability : float
        Of dropout.
    seed : int or None
        Of dropout; None: not drawn, and PyTorch's own dropout where PyTorch computes.
    """

    num_heads: int
    zero_row: bool
    causal: bool
    average: bool | None
    tokens_first: bool
    probability: float
    seed: int | None


class Offsets(NamedTuple):
    """Where the sequences of a ragged batch begin: int64, (N + 1,), rising from 0."""

    query: torch.Tensor
    key: torch.Tensor
