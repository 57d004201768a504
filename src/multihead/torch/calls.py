"""One call of the layer, or of scaled dot-product attention, as the ways to compute it take it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from multihead.arguments import AttentionOptions, AttentionTensors, LayerOptions, LayerTensors


class Offsets(NamedTuple):
    """Where the sequences of a ragged batch begin: int64, (N + 1,), rising from 0."""

    query: torch.Tensor
    key: torch.Tensor


class LayerCall(NamedTuple):
    """A call of the layer.

    Attributes
    ----------
    tensors : LayerTensors
    options : LayerOptions
    offsets : Offsets or None
        Of a ragged batch, whose inputs are (total, features).
    """

    tensors: LayerTensors
    options: LayerOptions
    offsets: Offsets | None


class AttentionCall(NamedTuple):
    """A call of scaled dot-product attention.

    Attributes
    ----------
    tensors : AttentionTensors
    options : AttentionOptions
    """

    tensors: AttentionTensors
    options: AttentionOptions
