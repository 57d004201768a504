"""Arrays of the caller that gradients are written to: ``backward(..., out=...)``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from multihead.arrays import Array, Element, Kind, Shape, encode, writable
from multihead.checks import wrong, wrong_type
from multihead.memory import new_array

_OVERLAP_WORK: Any = 100_000  # NumPy's stub knows only -1 and 0


class Outputs:
    """The three checked arrays of `out`, as the engine writes them.

    `arrays` holds None where the caller gave None, and one object where an array was given twice.
    """

    def __init__(self, out: Any, element: Element, shapes: tuple[Shape, ...]) -> None:
        if not isinstance(out, tuple | list) or len(out) != 3:
            got = f"{type(out).__name__} of {len(out)}" if hasattr(out, "__len__") else type(out)
            raise wrong_type("out", "a tuple (d_query, d_key, d_value)", got)
        self._stored: list[tuple[Array, Kind] | None] = []
        self.arrays: list[Array | None] = []
        self._element = element
        for i, (x, shape) in enumerate(zip(out, shapes, strict=True)):
            if x is None:
                self._stored.append(None)
                self.arrays.append(None)
                continue
            array, kind = writable(f"out[{i}]", x, element, shape)
            if not array.flags.c_contiguous:
                self._refuse_self_overlap(i, array)
            array = self._seen_before(i, array)
            self._stored.append((array, kind))
            self.arrays.append(array)

    def _seen_before(self, i: int, array: Array) -> Array:
        """Return the same object for the same memory; refuse memory that overlaps in part."""
        for earlier in self.arrays:
            if earlier is not None and overlap(array, earlier):
                if not _same(array, earlier):
                    raise wrong(f"out[{i}]", "an array like an earlier one or apart", "an overlap")
                return earlier
        return array

    @staticmethod
    def _refuse_self_overlap(i: int, array: Array) -> None:
        """Refuse memory in which elements lie on each other, or may do so."""
        reach = 0
        steps = sorted(zip(map(abs, array.strides), array.shape, strict=True))
        for step, size in steps if array.size else ():
            if size > 1:
                if step < reach + array.itemsize:
                    raise wrong(f"out[{i}]", "an array without overlap in itself", array.strides)
                reach += step * (size - 1)

    def refuse_overlap(self, others: Iterable[tuple[str, Array]]) -> None:
        """Raise if an array shares memory with one that the engine reads or adds to."""
        unique = {id(a): (i, a) for i, a in enumerate(self.arrays) if a is not None}
        for name, other in {id(other): (name, other) for name, other in others}.values():
            for i, array in unique.values():
                if overlap(array, other):
                    raise wrong(f"out[{i}]", f"memory apart from {name}", "an overlap")

    def engine_arrays(self, one_pass: bool) -> tuple[Array | None, ...]:
        """Return what the engine writes.

        An array of half precision that was given more than once is a new one of the compute dtype,
        so that the sum is rounded once, unless the engine sums all three in one pass.
        """
        compute, stored = self._element.compute, self._element.stored
        given = [id(a) for a in self.arrays if a is not None]
        written = {
            id(a): new_array("out", a.shape, compute)
            if self._element.half
            and given.count(id(a)) > 1
            and not (one_pass and given.count(id(a)) == len(self.arrays))
            else a.view(stored)
            for a in self.arrays
            if a is not None
        }
        self.arrays = [None if a is None else written[id(a)] for a in self.arrays]
        return tuple(self.arrays)

    def finish(self) -> None:
        """Round sums that the engine wrote into the caller's half precision arrays."""
        pairs = zip(self._stored, self.arrays, strict=True)
        once = {id(array): (stored, array) for stored, array in pairs if array is not None}
        for stored, array in once.values():
            if stored is not None:
                raw, kind = stored
                if array.dtype.itemsize != raw.dtype.itemsize:
                    raw[...] = encode(array, kind.dtype, kind.bfloat16)


def overlap(a: Array, b: Array) -> bool:
    """Whether two arrays share memory; when that is too hard to tell, they do."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.may_share_memory(a, b, max_work=_OVERLAP_WORK)
    except RuntimeError:  # so NumPy says that it found no memory to tell
        raise MemoryError("no memory to tell whether arrays overlap") from None


def _same(a: Array, b: Array) -> bool:
    here, there = a.__array_interface__, b.__array_interface__
    return here["data"][0] == there["data"][0] and a.shape == b.shape and a.strides == b.strides
