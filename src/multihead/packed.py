"""Packed sequences in attention alone: `Ragged` of (total, H, D) values, and what they say."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from multihead.arrays import Array, Shape
from multihead.checks import dims, wrong, wrong_type
from multihead.ragged import Ragged, same_offsets

_NAMES = ("query", "key", "value")


class Packing(NamedTuple):
    """Where the sequences begin, and the last one ends: int64 (N + 1,)."""

    query: Array
    key: Array

    @property
    def lengths(self) -> tuple[Array, Array]:
        """How many queries and keys each sequence has."""
        return np.diff(self.query), np.diff(self.key)

    def scores(
        self, query: Shape, key: Shape, value: Shape, enable_gqa: bool
    ) -> tuple[int, int, int, int]:
        """Check the shapes of the values; return (N, H, L, S) of the longest sequences."""
        for name, shape in zip(_NAMES, (query, key, value), strict=True):
            if len(shape) != 3:
                expected = dims("total", "H", "Dv" if name == "value" else "D")
                raise wrong(f"{name}.values", expected, shape)
        heads = key[1]
        if key[2] != query[2]:
            raise wrong("key.values", dims("total", "Hk", query[2]), key)
        if heads != query[1] and not enable_gqa:
            grouped = heads > 0 and query[1] % heads == 0
            way = " (enable_gqa=True lets fewer heads of keys serve groups of query heads)"
            expected = dims("total", query[1], query[2])
            raise wrong("key.values", expected, f"{key}{way if grouped else ''}")
        if enable_gqa and (heads < 1 or query[1] % heads):
            raise wrong("key.values", f"a number of heads that divides {query[1]}", heads)
        if value[:2] != key[:2]:
            raise wrong("value.values", dims(*key[:2], "Dv"), value)
        queries, keys = (int(x.max(initial=0)) for x in self.lengths)
        return len(self.query) - 1, query[1], queries, keys


def unpack(query: Any, key: Any, value: Any) -> tuple[Packing, tuple[Any, Any, Any]]:
    """Return what three `Ragged` hold; the values of one object are one object."""
    for name, x in zip(_NAMES, (query, key, value), strict=True):
        if not isinstance(x, Ragged):
            way = "Ragged(array, offsets)"
            raise wrong_type(name, f"a Ragged, as the others are ({way})", type(x).__name__)
    if len(key) != len(query):
        raise wrong("key", f"a Ragged of {len(query)} sequences", len(key))
    if not same_offsets(value, key.offsets):
        raise wrong("value", "a Ragged with the offsets of key", repr(value))
    return Packing(query.offsets, key.offsets), (query.values, key.values, value.values)


def unpack_like(name: str, x: Any, offsets: Array | None) -> Any:
    """Return the values of a gradient; an array that belongs to no packed call as it is."""
    if offsets is None:
        if isinstance(x, Ragged):
            raise wrong_type(name, "an array, as the inputs were", "Ragged")
        return x
    if not isinstance(x, Ragged):
        raise wrong_type(name, "a Ragged, as the inputs were", type(x).__name__)
    if not same_offsets(x, offsets):
        raise wrong(name, "a Ragged with the offsets of query", repr(x))
    return x.values


def pack(values: Any, offsets: Array | None) -> Any:
    """Return results for queries or keys as a `Ragged`, where the inputs were packed."""
    return values if offsets is None else Ragged(values, offsets)
