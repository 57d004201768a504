"""New arrays, and which of them there was no memory for."""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead.arrays import Array, Element, Shape
from multihead.checks import no_memory


def new_array(name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Make an array whose elements are yet to be set, or raise a MemoryError that names it."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):  # too large for this machine, or for any
        raise no_memory(name, shape, dtype) from None


def new_gradients(shapes: tuple[Shape, ...], element: Element) -> tuple[Array, ...]:
    """Make the gradients of query, key and value."""
    names = ("d_query", "d_key", "d_value")
    return tuple([new_array(n, x, element.stored) for n, x in zip(names, shapes, strict=True)])


def new_zeros(name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Make an array of zeros, or raise a MemoryError that names it."""
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError):
        raise no_memory(name, shape, dtype) from None
