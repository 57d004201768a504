"""What a call of sharded attention keeps for backward, as tensors that autograd saves.

Autograd sees changes in place then, and its hooks may put the tensors elsewhere or drop them, as
`torch.utils.checkpoint` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from multihead.arrays import Array, borrow


class _Place(NamedTuple):
    """Where an array of a cache is among the saved tensors.

    `like` is set for memory of an input: its dtype and shape in the cache.
    """

    number: int
    like: tuple[np.dtype[Any], tuple[int, ...]] | None


class Kept(NamedTuple):
    """A cache without its arrays.

    Attributes
    ----------
    frame : object
        The cache with places instead of arrays.
    shapes : list of torch.Size
        Of the saved tensors.
    """

    frame: Any
    shapes: list[torch.Size]


def taken_apart(cache: Any, inputs: Sequence[torch.Tensor]) -> tuple[Kept, list[torch.Tensor]]:
    """Return a cache without arrays, and the tensors to save: inputs first."""
    tensors = list(inputs)
    views = [borrow("input", x)[0] for x in inputs]

    def walk(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            for number, view in enumerate(views):
                if _is_seen_as(view, x):
                    return _Place(number, (x.dtype, x.shape))
            own = x if x.flags.writeable and x.flags.c_contiguous else np.array(x, order="C")
            tensors.append(torch.from_numpy(own))
            return _Place(len(tensors) - 1, None)
        return _mapped(x, walk)

    return Kept(walk(cache), [x.shape for x in tensors]), tensors


def _is_seen_as(view: Array, x: Array) -> bool:
    """Whether an array is the memory of an input, in its order."""
    if view.ctypes.data != x.ctypes.data or view.itemsize != x.itemsize or view.size != x.size:
        return False
    return x.size > 0 and view.view(x.dtype).reshape(x.shape).strides == x.strides


def put_together(kept: Kept, tensors: Sequence[torch.Tensor]) -> Any:
    """Return the cache again.

    Raises
    ------
    RuntimeError
        If hooks have changed the shape of a tensor.
    """
    found = [x.shape for x in tensors]
    if found != kept.shapes:
        raise RuntimeError(f"saved tensors: expected shapes {kept.shapes}, got {found}")
    arrays: list[Array] = [borrow("saved tensor", x.detach())[0] for x in tensors]

    def walk(x: Any) -> Any:
        if isinstance(x, _Place):
            array = arrays[x.number]
            if x.like is None:
                return array
            dtype, shape = x.like
            return array.view(dtype).reshape(shape)
        return _mapped(x, walk)

    return walk(kept.frame)


def _mapped(x: Any, walk: Any) -> Any:
    """Go through what named tuples hold, on to the arrays in them."""
    if not isinstance(x, tuple):
        return x
    parts = [walk(part) for part in x]
    kind: Any = type(x)
    return kind._make(parts) if hasattr(kind, "_make") else kind(parts)
