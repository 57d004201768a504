"""The two forms of a batch, dense and ragged: what the caller gave and what the engine takes.

Both have the same methods, so that the layer's forward and backward are written once.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from multihead.arrays import Array, Element, Kind, Shape, call_element, read, restore
from multihead.checks import dims, wrong, wrong_type
from multihead.masks import Mask, attention_mask, padding_mask
from multihead.memory import new_array, new_gradients
from multihead.outputs import Outputs
from multihead.ragged import Ragged, same_offsets

_NAMES = ("query", "key", "value")
_VALUES = ("query.values", "key.values", "value.values")
Inputs: TypeAlias = tuple[Array, Array, Array]
GivenOnce: TypeAlias = tuple[Array, Array | None, Array | None]


class Sizes(NamedTuple):
    """What a layer is made with and cannot change: every size that a call uses comes from here."""

    embed: int
    heads: int
    key_heads: int
    head: int
    kdim: int
    vdim: int
    bias: bool
    bias_key: bool
    zero_row: bool
    sinks: bool

    @property
    def queries(self) -> int:
        """Width of all heads of queries side by side."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Width of all heads of keys, and of all heads of values."""
        return self.key_heads * self.head

    @property
    def extra_keys(self) -> int:
        """How many keys every query sees besides those of the caller."""
        return self.bias_key + self.zero_row


def _read_three(
    element: Element, query: Any, key: Any, value: Any, names: tuple[str, str, str] = _NAMES
) -> tuple[Inputs, Inputs, tuple[Kind, Kind, Kind]]:
    """Read the inputs: arrays, as they lie in memory, kinds; what is one object stays one.

    Key and value are of the dtype of query.
    """
    q, q_raw, q_kind = read(names[0], query, element)
    if key is query and value is query:
        return (q, q, q), (q_raw, q_raw, q_raw), (q_kind, q_kind, q_kind)
    other = q, q_raw, q_kind
    k, k_raw, k_kind = other if key is query else read(names[1], key, element, "")
    if value is key:
        return (q, k, k), (q_raw, k_raw, k_raw), (q_kind, k_kind, k_kind)
    v, v_raw, v_kind = other if value is query else read(names[2], value, element, "")
    return (q, k, v), (q_raw, k_raw, v_raw), (q_kind, k_kind, v_kind)


def given_once(query: Array, key: Array, value: Array) -> GivenOnce:
    """Leave out the value that is the key, and the key that is the query."""
    return query, None if key is query else key, None if value is key else value


class DenseSizes(NamedTuple):
    """What the shapes of dense inputs say."""

    batched: bool
    tokens_first: bool
    batch: int
    queries: int
    keys: int


@functools.lru_cache(maxsize=1024)
def dense_sizes(sizes: Sizes, batch_first: bool, q: Shape, k: Shape, v: Shape) -> DenseSizes:
    """Check the shapes of query, key and value against a layer's sizes."""

    def forms(length: str, width: int) -> str:
        batched = ("N", length, width) if batch_first else (length, "N", width)
        return f"{dims(*batched)} or {dims(length, width)}"

    if len(q) not in (2, 3) or q[-1] != sizes.embed:
        raise wrong("query", forms("L", sizes.embed), q)
    if len(k) not in (2, 3) or k[-1] != sizes.kdim:
        raise wrong("key", forms("S", sizes.kdim), k)
    batched = len(q) == 3
    tokens_first = batched and not batch_first
    axis = 1 if tokens_first else 0
    batch = q[axis] if batched else 1
    if len(k) != len(q) or (batched and k[axis] != batch):
        form = [batch, "S"] if batched else ["S"]
        turned = len(k) == 3 and batched and k[1 - axis] == batch
        got = f"{k} (key.swapaxes(0, 1) fits)" if turned else k
        raise wrong("key", dims(*(form[::-1] if tokens_first else form), sizes.kdim), got)
    if v[:-1] != k[:-1] or v[-1] != sizes.vdim:
        raise wrong("value", (*k[:-1], sizes.vdim), v)
    tokens = 0 if tokens_first else -2
    return DenseSizes(batched, tokens_first, batch, q[tokens], k[tokens])


class Dense:
    """Inputs (L, E), (L, N, E) or, batch first, (N, L, E), which the engine takes as they are."""

    offsets = None

    def __init__(
        self, element: Element, sizes: Sizes, batch_first: bool, query: Any, key: Any, value: Any
    ) -> None:
        self.element, self.sizes = call_element(element, query), sizes
        self.inputs, self.raw, self.kinds = _read_three(self.element, query, key, value)
        q, k, v = self.inputs
        shape = q.shape
        self.shapes = (shape, shape if k is q else k.shape, shape if v is q else v.shape)
        found = dense_sizes(sizes, batch_first, *self.shapes)
        self.batched, self.tokens_first, self.batch, self.queries, self.keys = found

    def masks(self, padding: Any, attn: Any) -> tuple[Mask | None, Mask | None]:
        """Check key_padding_mask and attn_mask."""
        if padding is None and attn is None:
            return None, None
        compute = self.element.compute
        shape = (self.batch, self.sizes.heads, self.queries, self.keys)
        columns = (self.batch, self.keys) if self.batched else (self.keys,)
        return (
            padding_mask(padding, columns, compute, self.tokens_first),
            attention_mask(attn, shape, compute),
        )

    def new_out(self) -> Array:
        """Make an output."""
        return new_array("out", self.shapes[0], self.element.stored)

    def new_weights(self, average: bool) -> tuple[Array, Array]:
        """Make weights, twice the same array."""
        weights = new_array("weights", self._weights_shape(average), self.element.stored)
        return weights, weights

    def _weights_shape(self, average: bool) -> Shape:
        shape: Shape = (self.queries, self._columns)
        if not average:
            shape = (self.sizes.heads, *shape)
        return (self.batch, *shape) if self.batched else shape

    @property
    def _columns(self) -> int:
        return self.keys + self.sizes.extra_keys

    def finish_out(self, out: Array) -> Any:
        """Return an output of the engine as the caller's kind of array."""
        return restore(out, self.kinds[0])

    finish_weights = finish_out

    def read_d_out(self, d_out: Any) -> tuple[Array, Array]:
        """Check d_out; return it as the engine reads it and as it lies in memory."""
        array, raw, _ = read("d_out", d_out, self.element, "")
        if array.shape != self.shapes[0]:
            raise wrong("d_out", self.shapes[0], array.shape)
        return array, raw

    def read_d_weights(self, d_weights: Any, average: bool) -> tuple[Array, list[Array]]:
        """Check d_weights; return it as the engine reads it and as it lies in memory."""
        array, raw, _ = read("d_weights", d_weights, self.element, "")
        if array.shape != self._weights_shape(average):
            raise wrong("d_weights", self._weights_shape(average), array.shape)
        return array, [raw]

    def new_gradients(self) -> tuple[Array, ...]:
        """Make the gradients of the inputs in the caller's layout."""
        return new_gradients(self.shapes, self.element)

    def outputs(self, out: Any) -> Outputs:
        """Check the caller's arrays for the gradients of the inputs."""
        return Outputs(out, self.element, self.shapes)

    def finish_gradients(self, arrays: tuple[Array, ...]) -> tuple[Any, Any, Any]:
        """Return gradients as the caller's kinds of arrays."""
        (a, b, c), (d, e, f) = arrays, self.kinds
        return restore(a, d), restore(b, e), restore(c, f)


class RaggedBatch:
    """Ragged inputs; the engine takes their values (total, E) and their offsets."""

    batched = True
    tokens_first = False

    def __init__(self, element: Element, sizes: Sizes, query: Any, key: Any, value: Any) -> None:
        for name, x in zip(_NAMES, (query, key, value), strict=True):
            if not isinstance(x, Ragged):
                raise wrong_type(name, "a Ragged, as the others are", type(x).__name__)
        self.element, self.sizes = call_element(element, query.values), sizes
        three = _read_three(self.element, query.values, key.values, value.values, _VALUES)
        self.inputs, self.raw, self.kinds = three
        self.shapes = tuple(array.shape for array in self.inputs)
        self.offsets = (query.offsets, key.offsets)
        totals = (query.offsets[-1], key.offsets[-1], value.offsets[-1])
        expected = zip(totals, (sizes.embed, sizes.kdim, sizes.vdim), strict=True)
        for name, shape, (total, width) in zip(_NAMES, self.shapes, expected, strict=True):
            if shape != (total, width):
                raise wrong(name, f"a Ragged with values {dims(total, width)}", shape)
        if len(key) != len(query):
            raise wrong("key", f"a Ragged of {len(query)} sequences", len(key))
        if not same_offsets(value, key.offsets):
            raise wrong("value", "a Ragged with the offsets of key", repr(value))
        self.batch = len(query)
        self._queries: list[int] = query.lengths.tolist()
        self._keys: list[int] = key.lengths.tolist()
        self.queries = max(self._queries, default=0)
        self.keys = max(self._keys, default=0)

    def masks(self, padding: Any, attn: Any) -> tuple[None, Mask | None]:
        """Check attn_mask, which is cut top-left for each sequence."""
        if padding is not None:
            raise wrong("key_padding_mask", "None with ragged inputs", type(padding).__name__)
        shape = (self.batch, self.sizes.heads, self.queries, self.keys)
        return None, attention_mask(attn, shape, self.element.compute)

    def new_out(self) -> Array:
        """Make the values of an output."""
        return new_array("out", self.shapes[0], self.element.stored)

    def _weight_shapes(self, average: bool) -> list[Shape]:
        extra = self.sizes.extra_keys
        pairs = zip(self._queries, self._keys, strict=True)
        if average:
            return [(length, keys + extra) for length, keys in pairs]
        return [(self.sizes.heads, length, keys + extra) for length, keys in pairs]

    def new_weights(self, average: bool) -> tuple[list[Array], Array]:
        """Make weights: one array for each sequence, and the memory they lie in."""
        shapes = self._weight_shapes(average)
        ends = np.cumsum([0, *map(math.prod, shapes)]).tolist()
        weights = new_array("weights", (ends[-1],), self.element.stored)
        runs = zip(ends[:-1], ends[1:], shapes, strict=True)
        return [weights[a:b].reshape(shape) for a, b, shape in runs], weights

    def finish_out(self, out: Array) -> Ragged[Any]:
        """Return an output of the engine as a Ragged like query."""
        return Ragged(restore(out, self.kinds[0]), self.offsets[0])

    def finish_weights(self, weights: Any) -> list[Any]:
        """Return the weights of each sequence as the caller's kind of array."""
        return [restore(array, self.kinds[0]) for array in weights]

    def read_d_out(self, d_out: Any) -> tuple[Array, Array]:
        """Check d_out and return its values; also as they lie in memory."""
        if not isinstance(d_out, Ragged):
            raise wrong_type("d_out", "a Ragged, as the output is", type(d_out).__name__)
        array, raw, _ = read("d_out", d_out.values, self.element, "")
        if array.shape != self.shapes[0] or not same_offsets(d_out, self.offsets[0]):
            expected = f"a Ragged with values {self.shapes[0]} and the offsets of query"
            raise wrong("d_out", expected, repr(d_out))
        return array, raw

    def read_d_weights(self, d_weights: Any, average: bool) -> tuple[Array, list[Array]]:
        """Check d_weights and copy it into one array; also as it lies in memory."""
        if not isinstance(d_weights, list | tuple) or len(d_weights) != self.batch:
            got = len(d_weights) if hasattr(d_weights, "__len__") else type(d_weights).__name__
            raise wrong("d_weights", f"a list of {self.batch} arrays", got)
        arrays, raw = [np.empty(0, self.element.stored)], []
        pairs = zip(d_weights, self._weight_shapes(average), strict=True)
        for n, (x, shape) in enumerate(pairs):
            array, memory, _ = read(f"d_weights[{n}]", x, self.element, "")
            if array.shape != shape:
                raise wrong(f"d_weights[{n}]", shape, array.shape)
            arrays.append(array.reshape(-1))
            raw.append(memory)
        return np.concatenate(arrays), raw

    def new_gradients(self) -> tuple[Array, ...]:
        """Make the values of the gradients of the inputs."""
        return new_gradients(self.shapes, self.element)

    def outputs(self, out: Any) -> Outputs:
        """Check the caller's Ragged for the gradients of the inputs."""
        if not isinstance(out, tuple | list):
            raise wrong_type("out", "a tuple (d_query, d_key, d_value)", type(out).__name__)
        offsets = (self.offsets[0], self.offsets[1], self.offsets[1])
        for i, (x, steps) in enumerate(zip(out, offsets, strict=False)):
            if x is not None and not isinstance(x, Ragged):
                raise wrong_type(f"out[{i}]", "a Ragged or None", type(x).__name__)
            if x is not None and not same_offsets(x, steps):
                raise wrong(f"out[{i}]", f"a Ragged with the offsets of {_NAMES[i]}", repr(x))
        values = [None if x is None else x.values for x in out]
        return Outputs(values, self.element, self.shapes)

    def finish_gradients(self, arrays: tuple[Array, ...]) -> tuple[Any, Any, Any]:
        """Return gradients as Ragged like the inputs."""
        offsets = (self.offsets[0], self.offsets[1], self.offsets[1])
        zipped = zip(arrays, self.kinds, offsets, strict=True)
        a, b, c = (Ragged(restore(array, kind), steps) for array, kind, steps in zipped)
        return a, b, c
