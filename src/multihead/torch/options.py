"""What a call of the layer says beside its tensors, and the order of its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

# of a call, and of its gradients
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
INPUTS, MASKS, PARAMETERS = slice(0, 3), slice(3, 5), slice(5, None)


class Options(NamedTuple):
    """Options of one call; the engine's face reads the first seven by position.

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
        Of dropout; None: PyTorch's own dropout, where PyTorch computes.
    shared : int
        2: query, key and value are one tensor; 1: key and value are.
    """

    num_heads: int
    zero_row: bool
    causal: bool
    average: bool | None
    tokens_first: bool
    probability: float
    seed: int | None
    shared: int


class Offsets(NamedTuple):
    """Where the sequences of a ragged batch begin: int64, (N + 1,), rising from 0."""

    query: torch.Tensor
    key: torch.Tensor
