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


def input_tensors(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return query, key and value as `LayerTensors` has them: one tensor is projected once."""
    if value is not key:
        return query, key, value
    return query, None if key is query else key, None


def cloned_inputs(tensors: LayerTensors) -> LayerTensors:
    """Copy query, key and value, so that they may change before backward."""
    given = {name: getattr(tensors, name) for name in ("query", "key", "value")}
    return tensors._replace(**{name: None if x is None else x.clone() for name, x in given.items()})


def batch_of_one(tensors: LayerTensors) -> LayerTensors:
    """Make unbatched inputs a batch: (tokens, features) becomes (1, tokens, features)."""
    given = {name: getattr(tensors, name) for name in ("query", "key", "value", "padding")}
    return tensors._replace(**{name: None if x is None else x[None] for name, x in given.items()})


def result_weights(
    weights: torch.Tensor | None, average: bool | None, unbatched: bool
) -> torch.Tensor | None:
    """Return weights (N, H or 1, L, S') without the axes that the caller does not have."""
    if weights is None:
        return None
    weights = weights[:, 0] if average else weights
    return weights[0] if unbatched else weights
