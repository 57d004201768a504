"""What a call of attention is given, taken in: dtypes and shapes that go together."""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead.arrays import (
    Array,
    Element,
    Kind,
    Shape,
    borrow,
    decode,
    dtype_name,
    element_of,
    read,
)
from multihead.checks import dims, wrong


def element_given(name: str, query: Any) -> Element:
    """Return the element type of queries."""
    if type(query) is np.ndarray and query.dtype.kind == "f":
        return element_of(query.dtype, name)
    array, kind = borrow(name, query)
    return element_of(dtype_name(array, kind), name)


def keys_given(name: str, x: Any, element: Element) -> tuple[Array, Kind]:
    """Take in keys or values: half precision, too, where queries are float32."""
    if element.name == "float32" and not (type(x) is np.ndarray and x.dtype == element.compute):
        found = dtype_name(*borrow(name, x))
        element = element_of(found) if found in ("float16", "bfloat16") else element
    array, _, kind = read(name, x, element, "")
    return array, kind


def rows_given(name: str, x: Any, shape: Shape, compute: np.dtype[Any]) -> Array:
    """Take in one float for each query."""
    array, kind = borrow(name, x)
    if array.shape != shape:
        raise wrong(name, shape, array.shape)
    return decode(array, compute, kind.bfloat16)


def check_shapes(query: Shape, key: Shape, value: Shape, enable_gqa: bool) -> None:
    """Raise unless queries, keys and values of these shapes go together."""
    if len(query) < (3 if enable_gqa else 2):
        raise wrong("query", dims("...", *("H",) * enable_gqa, "L", "D"), query)
    same = len(key) == len(query) and key[-1] == query[-1]
    if enable_gqa:
        if not same or key[:-3] != query[:-3]:
            raise wrong("key", dims(*query[:-3], "Hk", "S", query[-1]), key)
        if key[-3] < 1 or query[-3] % key[-3]:
            raise wrong("key", f"a number of heads that divides {query[-3]}", key[-3])
    elif not same or key[:-2] != query[:-2]:
        grouped = same and key[:-3] == query[:-3] and key[-3] and query[-3] % key[-3] == 0
        way = " (enable_gqa=True lets fewer heads of keys serve groups of query heads)"
        raise wrong("key", dims(*query[:-2], "S", query[-1]), f"{key}{way if grouped else ''}")
    if len(value) != len(query) or value[:-1] != key[:-1]:
        raise wrong("value", dims(*key[:-1], "Dv"), value)
