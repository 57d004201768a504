"""The parameters of a sharded layer as they are computed with, and their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from multihead.arguments import LayerParameters
from multihead.arrays import Array, decode, encode
from multihead.locks import turn_of
from multihead.parameters import engine_arrays

if TYPE_CHECKING:
    from multihead.layer import MultiheadAttention


class Gradients(NamedTuple):
    """Of all parameters: one array that ranks add up, and the part of each by its name."""

    flat: Array
    of: dict[str, Array]


def parameters_of(layer: MultiheadAttention, compute: np.dtype[Any]) -> dict[str, Array]:
    """Return the parameters in the dtype computed in."""
    arrays = layer._block.arrays
    if not layer._element.half:
        return arrays
    bits = layer.dtype == "bfloat16"
    return {name: decode(x, compute, bits) for name, x in arrays.items()}


def no_gradients(shapes: Mapping[str, tuple[int, ...]], compute: np.dtype[Any]) -> Gradients:
    """Return gradients that are 0."""
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])
    flat = np.zeros(ends[-1], compute)
    parts = zip(shapes.items(), ends, ends[1:], strict=False)
    return Gradients(flat, {name: flat[a:b].reshape(shape) for (name, shape), a, b in parts})


def add_gradients(layer: MultiheadAttention, found: Gradients, grads: LayerParameters) -> None:
    """Add sums over the ranks to those of the layer, in the dtype of these."""
    of_grads = layer._of_grads
    bits = of_grads.name == "bfloat16"
    with turn_of(layer):
        own = zip(engine_arrays(found.of), grads, strict=True)
        pairs = [(x, to) for x, to in own if to is not None]
        if of_grads.half:  # all there is to compute before anything is written
            sums = [
                encode(decode(to, of_grads.compute, bits) + x, of_grads.stored, bits)
                for x, to in pairs
            ]
            for x, (_, to) in zip(sums, pairs, strict=True):
                to[...] = x
        else:
            for x, to in pairs:
                to += x


def all_sinks(sinks: Array | None, zero_rows: int, compute: np.dtype[Any]) -> Array | None:
    """Return the sinks with the zero row, whose score is 0 for each of so many heads."""
    if not zero_rows:
        return sinks
    if sinks is None:
        return np.zeros(zero_rows, compute)
    return np.logaddexp(sinks.astype(np.float64), 0.0).astype(compute)


def share_of_sinks(sinks: Array, zero_row: bool) -> Array | float:
    """Return what of the gradient of `all_sinks` is that of the sinks."""
    if not zero_row:
        return 1.0
    with np.errstate(over="ignore"):
        share: Array = 1 / (1 + np.exp(-sinks.astype(np.float64)))
    return share
