"""Masks of the caller, checked and viewed in the shapes that the engine takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from multihead.arrays import Array, Kind, Shape, borrow, decode, restore
from multihead.checks import dims, wrong, wrong_type

_BOOL = np.dtype(np.bool_)
_HIDES = "True means ignore here: {0} == 0 if 1 means keep"
_SHOWS = "True means attend here: {0} != 0 if 1 means keep"


class MaskGradient(NamedTuple):
    """Where the gradient of a float mask goes: computed in one shape, returned in another.

    `expanded`, where given, is the computed shape with every leading axis of the scores; axes in
    which the caller's mask is broadcast are summed.
    """

    engine_shape: Shape
    shape: Shape
    kind: Kind
    expanded: Shape | None = None

    def finish(self, array: Array) -> Any:
        """Return the engine's gradient in the shape and kind of the caller's mask."""
        if self.expanded is not None:
            array = array.reshape(self.expanded)
        if self.shape:  # without the columns that a narrow mask hides
            array = array[..., : self.shape[-1]]
        if self.expanded is not None:
            lead = (1,) * (array.ndim - len(self.shape)) + self.shape
            pairs = enumerate(zip(lead, array.shape, strict=True))
            axes = tuple(i for i, (own, full) in pairs if own != full)
            array = array.sum(axis=axes, keepdims=True)
        return restore(array.reshape(self.shape), self.kind)


class Mask(NamedTuple):
    """A mask as the engine takes it; `gradient` is None when it is boolean."""

    array: Array
    gradient: MaskGradient | None


def _read(
    name: str,
    mask: Any,
    compute: np.dtype[Any],
    check: Callable[[Shape], None],
    polarity: str = _HIDES,
) -> tuple[Array, Kind | None]:
    """Return a mask as bool with None, or as floats of the compute dtype with its kind.

    `check` raises where the shape does not fit, before anything of that size is made.
    """
    if type(mask) is np.ndarray and mask.dtype is _BOOL:
        check(mask.shape)
        return mask, None
    array, kind = borrow(name, mask)
    if array.dtype == _BOOL:
        check(array.shape)
        return array, None
    if not kind.bfloat16 and array.dtype.kind != "f":
        got = array.dtype.name
        if array.dtype.kind in "iu":
            got += f" ({polarity.format(name)})"
        raise wrong_type(name, "bool or floating", got)
    check(array.shape)
    if kind.bfloat16:
        return decode(array, compute, True), kind
    if array.dtype == compute and array.flags.aligned and array.dtype.isnative:
        return array, kind
    return _cast(array, compute), kind._replace(dtype=array.dtype.newbyteorder("="))


def _cast(array: Array, compute: np.dtype[Any]) -> Array:
    """Cast a float mask; what is finite stays finite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        cast = array.astype(compute)
    if array.dtype.itemsize > compute.itemsize:
        limit = np.finfo(compute).max
        over = np.isinf(cast) & np.isfinite(array)
        cast[over] = np.copysign(limit, cast[over])
    return cast


def check_padding(given: Shape, shape: Shape, tokens_first: bool = False) -> None:
    """Raise unless a key_padding_mask is of `shape`, (N, S) or unbatched (S,)."""
    if given != shape:
        way = "key_padding_mask.T" + ", or batch_first=True for the layer," * tokens_first
        raise wrong("key_padding_mask", shape, _with_way(given, {shape[::-1]: way}))


def padding_mask(
    mask: Any, shape: Shape, compute: np.dtype[Any], tokens_first: bool = False
) -> Mask | None:
    """Check a key_padding_mask, (N, S) or unbatched (S,)."""
    if mask is None:
        return None
    check = functools.partial(check_padding, shape=shape, tokens_first=tokens_first)
    polarity = _HIDES
    if len(shape) == 2 and getattr(mask, "shape", None) == shape[:1]:
        polarity = f"lengths? np.arange({shape[1]}) >= {{0}}[:, None]"
    array, kind = _read("key_padding_mask", mask, compute, check, polarity)
    return Mask(array, kind and MaskGradient(shape, shape, kind))


def check_attention(given: Shape, shape: tuple[int, int, int, int]) -> None:
    """Raise unless an attn_mask is (L, S), (N * H, L, S) or broadcasts to `shape` (N, H, L, S)."""
    batch, heads, queries, keys = shape
    if given in ((queries, keys), (batch * heads, queries, keys)):
        return
    if len(given) == 4 and all(a in (1, b) for a, b in zip(given, shape, strict=True)):
        return
    each = (batch * heads, queries, keys)
    expected = f"{each[1:]}, {each} or 4-D that broadcasts to {shape}"
    ways = {
        (batch, queries, keys): "attn_mask[:, None]",
        (heads, queries, keys): "attn_mask[None]",
    }
    raise wrong("attn_mask", expected, _with_way(given, ways))


def attention_mask(
    mask: Any, shape: tuple[int, int, int, int], compute: np.dtype[Any]
) -> Mask | None:
    """Check an attn_mask against `shape` (N, H, L, S).

    It is (L, S), (N * H, L, S), or 4-D and broadcastable to (N, H, L, S).
    """
    if mask is None:
        return None
    check = functools.partial(check_attention, shape=shape)
    array, kind = _read("attn_mask", mask, compute, check)
    return Mask(array, kind and MaskGradient(array.shape, array.shape, kind))


def _with_way(given: Shape, ways: Mapping[Any, str]) -> str:
    """Write a shape that does not fit, with what makes it fit if that is known."""
    return f"{given} ({ways[given]} fits)" if given in ways else str(given)


def fold(shape: Shape) -> tuple[int, int, int, int]:
    """Fold the leading axes of (..., a, b) into (N, H, a, b)."""
    *lead, rows, columns = shape
    if len(lead) < 2:
        return (lead[0] if lead else 1, 1, rows, columns)
    return (math.prod(lead[:-1]), lead[-1], rows, columns)


def of_heads(shape: Shape) -> tuple[int, int, int, int]:
    """Fold the axes before the heads of (..., H, a, b) into one: (N, H, a, b)."""
    *lead, heads, rows, columns = (1,) * max(0, 3 - len(shape)) + tuple(shape)
    return (math.prod(lead), heads, rows, columns)


def _check_scores(given: Shape, scores: Shape) -> None:
    """Raise unless a mask broadcasts to scores (..., L, S), or would with more columns."""
    lead = (1,) * (len(scores) - len(given)) + given
    fits = len(lead) == len(scores) and all(
        a in (1, b) for a, b in zip(lead[:-1], scores[:-1], strict=True)
    )
    if fits and (lead[-1] in (1, scores[-1]) or 1 < lead[-1] < scores[-1]):
        return
    way = {(*scores[:-3], *scores[-2:]): "attn_mask[..., None, :, :]"} if len(scores) > 3 else {}
    raise wrong("attn_mask", f"a shape that broadcasts to {scores}", _with_way(given, way))


def score_mask(
    mask: Any,
    scores: Shape,
    compute: np.dtype[Any],
    folded: Callable[[Shape], tuple[int, int, int, int]] = fold,
) -> Mask | None:
    """Check a mask that broadcasts to `scores` (..., L, S) and fold its leading axes into two.

    One with fewer columns hides the keys after them.
    """
    if mask is None:
        return None
    check = functools.partial(_check_scores, scores=scores)
    array, kind = _read("attn_mask", mask, compute, check, _SHOWS)
    given = array.shape
    if given and 1 < given[-1] < scores[-1]:
        more = [(0, 0)] * (len(given) - 1) + [(0, scores[-1] - given[-1])]
        array = np.pad(array, more, constant_values=False if array.dtype == bool else -np.inf)
    lead = (1,) * (len(scores) - array.ndim) + array.shape
    outer, expanded = lead[:-3], None
    if outer != scores[: len(outer)] and max(outer) > 1:  # broadcast in some of them
        expanded = scores[: len(outer)] + lead[-3:]
        array = np.broadcast_to(array, expanded)
    shape = folded(expanded or lead)
    return Mask(array.reshape(shape), kind and MaskGradient(shape, given, kind, expanded))


def merge(
    attn_mask: Any, key_padding_mask: Any, shape: Shape, heads: int, compute: np.dtype[Any]
) -> tuple[Any, int | None]:
    """Combine two masks for a query of `shape`, as `MultiheadAttention.merge_masks` says."""
    if attn_mask is None:
        return key_padding_mask, None if key_padding_mask is None else 1
    if len(shape) != 3:
        raise wrong("query", dims("N", "L", "E"), shape)
    array, kind = borrow("attn_mask", attn_mask)
    batch, queries = shape[:2]
    keys = array.shape[-1] if array.ndim else 0
    mask = attention_mask(attn_mask, (batch, heads, queries, keys), compute)
    padding = padding_mask(key_padding_mask, (batch, keys), compute)
    assert mask is not None
    scores = (batch, heads, queries, keys)
    by_head = mask.array.reshape(scores) if mask.array.ndim == 3 else mask.array
    mask = Mask(np.broadcast_to(by_head, scores), mask.gradient)
    merged = mask.array
    if padding is not None:
        columns = Mask(padding.array[:, None, None, :], padding.gradient)
        if mask.gradient is None and padding.gradient is None:
            merged = merged | columns.array
        else:
            with np.errstate(invalid="ignore"):
                merged = _added(mask, compute) + _added(columns, compute)
    return kind._replace(bfloat16=False).wrap(merged), 2


def _added(mask: Mask, compute: np.dtype[Any]) -> Array:
    """Return a mask as the floats to add to the scores."""
    if mask.gradient is not None:
        return mask.array
    added: Array = np.where(mask.array, compute.type(-np.inf), compute.type(0))
    return added
