"""Batches of sequences of different lengths, without padding."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Generic, SupportsIndex, TypeVar, overload

import numpy as np

from multihead.arrays import Array, Kind, borrow, dtype_name
from multihead.checks import dims, no_memory, wrong, wrong_type
from multihead.display import ragged_html

A = TypeVar("A")
B = TypeVar("B")  # of a batch that is made of what comes, whatever the class is of


class Ragged(Generic[A]):
    """Sequences of different lengths, one after the other in one array.

    Sequence ``n`` is ``values[offsets[n]:offsets[n + 1]]``. A layer that is given ragged query,
    key and value returns a ragged output, and computes nothing for padding that is not there; so
    does `functional.scaled_dot_product_attention`, for values (total, H, D).

    Parameters
    ----------
    values : array of shape (total, E) or (total, H, D)
        Any array that the layer takes: NumPy's or one that speaks DLPack. It is not copied.
    offsets : array of shape (N + 1,), integers
        From 0 to `total`, never falling. It is copied to int64.

    Attributes
    ----------
    values, offsets
        As given; a `Ragged` cannot be changed, though its values can in place.
    lengths : ndarray of shape (N,), int64

    Raises
    ------
    TypeError
        If `values` is no array or `offsets` holds no integers.
    ValueError
        If the shapes are not as above, or the offsets do not run from 0 up to `total`.

    Examples
    --------
    >>> import numpy as np
    >>> batch = Ragged.from_list([np.ones((2, 4)), np.ones((3, 4))])
    >>> batch
    Ragged(N=2, total=5, E=4, lengths=2 to 3)
    >>> batch.to_padded().shape
    (2, 3, 4)
    """

    __slots__ = ("_kind", "_view", "offsets", "values")

    values: A
    offsets: Array
    _view: Array
    _kind: Kind

    def __init__(self, values: A, offsets: Any) -> None:
        view, kind = borrow("values", values)
        if view.ndim not in (2, 3):
            expected = f"{dims('total', 'E')} or {dims('total', 'H', 'D')}"
            raise wrong("values", expected, view.shape)
        steps = _offsets(offsets, view.shape[0])
        parts = {"values": values, "offsets": steps, "_view": view, "_kind": kind}
        for name, part in parts.items():
            object.__setattr__(self, name, part)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a Ragged cannot be changed, make a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: a Ragged cannot be changed, make a new one")

    def __reduce__(self) -> tuple[Any, ...]:
        return Ragged, (self.values, self.offsets)

    @classmethod
    def from_list(cls, sequences: Sequence[B]) -> Ragged[B]:
        """Concatenate N arrays of shape (L_n, E) or (L_n, H, D), all of one dtype, into a batch.

        Parameters
        ----------
        sequences : sequence of N arrays of shape (L_n, E) or (L_n, H, D)
            At least one, as the values need an E. All of the kind of the first.

        Returns
        -------
        Ragged
            Over a copy of the values.

        Raises
        ------
        ValueError, TypeError
            If there is no array, or their shapes or dtypes differ beyond the lengths.

        Examples
        --------
        >>> Ragged.from_list([np.zeros((1, 4)), np.zeros((2, 4))]).offsets
        array([0, 1, 3])
        """
        if len(sequences) == 0:
            raise wrong("sequences", "at least one array", "none")
        pairs = [borrow(f"sequences[{n}]", x) for n, x in enumerate(sequences)]
        first, kind = pairs[0]
        for n, (view, other) in enumerate(pairs):
            if first.ndim not in (2, 3) or view.shape[1:] != first.shape[1:]:
                token = first.shape[1:] if first.ndim in (2, 3) else ("E",)
                raise wrong(f"sequences[{n}]", dims("L", *token), view.shape)
            if (view.dtype, other.bfloat16) != (first.dtype, kind.bfloat16):
                got = dtype_name(view, other)
                way = f" (sequences[{n}].astype(np.{first.dtype}))" if not kind.bfloat16 else ""
                raise wrong_type(f"sequences[{n}]", dtype_name(first, kind), got + way)
        lengths = [view.shape[0] for view, _ in pairs]
        values = np.concatenate([view for view, _ in pairs])
        made: Ragged[Any] = cls(kind.wrap(values), np.cumsum([0, *lengths]))
        return made

    @property
    def lengths(self) -> Array:
        """The lengths of the sequences, (N,) int64."""
        return np.diff(self.offsets)

    def to_list(self) -> list[A]:
        """Return the N sequences as views of `values`, each (L_n, E) or (L_n, H, D).

        Examples
        --------
        >>> [x.shape for x in Ragged(np.zeros((3, 4)), [0, 1, 3]).to_list()]
        [(1, 4), (2, 4)]
        """
        ends = self.offsets.tolist()
        values: Any = self.values
        return [values[a:b] for a, b in pairwise(ends)]

    def to_padded(self, fill: float = 0.0) -> A:
        """Return a new array (N, max L, E) or (N, max L, H, D) with `fill` after each sequence.

        Parameters
        ----------
        fill : float, default 0.0
            The value of the padding, rounded to the dtype of `values`.

        Returns
        -------
        array of shape (N, max L, E) or (N, max L, H, D)
            Of the kind and dtype of `values`.

        Examples
        --------
        >>> Ragged(np.ones((3, 1)), [0, 1, 3]).to_padded(fill=-1.0)[..., 0]
        array([[ 1., -1.],
               [ 1.,  1.]])
        """
        lengths = self.lengths
        shape = (len(self), int(lengths.max(initial=0)), *self._view.shape[1:])
        try:
            padded = self._kind.full(shape, fill)
        except (MemoryError, ValueError):
            raise no_memory("padded values", shape, self._kind.dtype) from None
        for row, (a, b) in zip(padded, pairwise(self.offsets.tolist()), strict=True):
            row[: b - a] = self._view[a:b]
        wrapped: A = self._kind.wrap(padded)
        return wrapped

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: slice) -> Ragged[A]: ...
    @overload
    def __getitem__(self, index: SupportsIndex) -> A: ...
    def __getitem__(self, index: Any) -> Any:
        """Return sequence `index` as a view (L_n, E), or for a slice a `Ragged` of views.

        Parameters
        ----------
        index : int or slice
            From the end if negative. Slices have a step of 1.

        Examples
        --------
        >>> batch = Ragged(np.arange(6.0)[:, None], [0, 1, 3, 6])
        >>> batch[-1].ravel(), batch[1:]
        (array([3., 4., 5.]), Ragged(N=2, total=5, E=1, lengths=2 to 3))
        """
        values: Any = self.values
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise wrong("index", "a slice with a step of 1", index)
            ends = self.offsets[first : max(first, last) + 1]
            return Ragged(values[ends[0] : ends[-1]], ends - ends[0])
        try:
            n = operator.index(index)
        except TypeError:
            raise wrong_type("index", "an integer or a slice", repr(index)) from None
        if not -len(self) <= n < len(self):
            raise IndexError(f"index: expected less than {len(self)} sequences, got {n}")
        n %= len(self)
        return values[int(self.offsets[n]) : int(self.offsets[n + 1])]

    def __iter__(self) -> Iterator[A]:
        """Go through the sequences, as views (L_n, E)."""
        return iter(self.to_list())

    def __repr__(self) -> str:
        total, *sizes = self._view.shape
        lengths = self.lengths
        span = f", lengths={lengths.min()} to {lengths.max()}" if len(self) else ""
        pairs = zip("E" if len(sizes) == 1 else "HD", sizes, strict=True)
        token = ", ".join(f"{name}={size}" for name, size in pairs)
        return f"Ragged(N={len(self)}, total={total}, {token}{span})"

    def _repr_html_(self) -> str:
        return ragged_html(self)


def same_offsets(x: Ragged[Any], offsets: Array) -> bool:
    """Whether sequences begin where others do."""
    return x.offsets is offsets or np.array_equal(x.offsets, offsets)


def _offsets(offsets: Any, total: int) -> Array:
    """Check offsets and return them as an int64 array that cannot be made writable."""
    if hasattr(offsets, "__dlpack__") and not isinstance(offsets, np.ndarray):
        offsets = borrow("offsets", offsets)[0]
    steps = np.asarray(offsets)
    if steps.dtype.kind not in "iu":
        raise wrong_type("offsets", "integers", steps.dtype)
    if steps.ndim != 1 or steps.size == 0:
        raise wrong("offsets", dims("N + 1"), steps.shape)
    if type(steps.base) is bytes and steps.dtype == np.int64 and steps.flags.c_contiguous:
        frozen = steps
    else:
        frozen = np.frombuffer(np.ascontiguousarray(steps, np.int64).tobytes(), np.int64)
    if frozen[0] != 0 or frozen[-1] != total or (frozen[1:] < frozen[:-1]).any():
        raise wrong("offsets", f"a rising run from 0 to {total}", steps)
    return frozen
