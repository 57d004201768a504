"""What stands between q kᵀ and the weights: a call's windows, positions, caps, ALiBi and sinks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from multihead.arrays import Array, Kind, borrow, decode
from multihead.checks import dims, integer, number, wrong, wrong_type

Window: TypeAlias = "int | tuple[int | None, int | None] | None"
_FAR = 2**40


class Asked(NamedTuple):
    """What a caller says of a call's scores, unchecked: arrays or tensors; None: nothing."""

    window: Window = None
    query_offset: Any = None
    key_lengths: Any = None
    softcap: float | None = None
    alibi_slopes: Any = None
    sinks: Any = None

    def __bool__(self) -> bool:
        """Whether there is anything."""
        nothing = self.window is None and self.query_offset is None and self.key_lengths is None
        return not (
            nothing and self.softcap is None and self.alibi_slopes is None and self.sinks is None
        )


class ScoreRules(NamedTuple):
    """The rules of one call, as the engine takes them.

    Attributes
    ----------
    softcap : float
        0: none.
    window : tuple of two int
        Keys seen before and after a query's own place; -1: all.
    alibi_slopes : ndarray (H,) or (N, H), or None
    sinks : ndarray (H,) or None
    sinks_kind : Kind or None
        How their gradient goes out.
    query_positions, key_lengths : ndarray of int64 (N,), or None
    """

    softcap: float = 0.0
    window: tuple[int, int] = (-1, -1)
    alibi_slopes: Array | None = None
    sinks: Array | None = None
    sinks_kind: Kind | None = None
    query_positions: Array | None = None
    key_lengths: Array | None = None


NO_RULES = ScoreRules()


def score_rules(
    scores: tuple[int, int, int, int],
    compute: np.dtype[Any],
    asked: Asked,
    sizes: tuple[Array, Array] | None = None,
) -> ScoreRules:
    """Check the rules of a call whose scores are (N, H, L, S), or raise.

    `sizes` are L and S of each sequence, where they differ.
    """
    n, heads, queries, keys = scores
    window, query_offset, key_lengths, softcap, alibi_slopes, sinks = asked
    lengths = None if key_lengths is None else _integers("key_lengths", key_lengths, n, 0, keys + 1)
    slopes = None
    if alibi_slopes is not None:
        slopes, _ = _floats("alibi_slopes", alibi_slopes, compute, ((heads,), (n, heads)))
    sunk, kind = None, None
    if sinks is not None:
        sunk, kind = _floats("sinks", sinks, compute, ((heads,),))
    if lengths is not None and sizes is not None and (lengths > sizes[1]).any():
        expected = f"at most the keys of each sequence, {sizes[1].tolist()}"
        raise wrong("key_lengths", expected, lengths.tolist())
    ends = sizes or (queries, keys)
    first = _positions(query_offset, n, *(ends if lengths is None else (ends[0], lengths)))
    return ScoreRules(cap_of(softcap), sides_of(window), slopes, sunk, kind, first, lengths)


def cap_of(value: float | None) -> float:
    """Return the cap, 0 where there is none."""
    cap = 0.0 if value is None else number("softcap", value)
    if not 0.0 <= cap < math.inf:
        raise wrong("softcap", "None or a number above 0", value)
    return cap


def sides_of(value: Window) -> tuple[int, int]:
    """Return how many keys a window shows before and after a query's place; -1: all."""
    if value is None:
        return -1, -1
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise wrong("window", "(left, right)", value)
        left, right = value
    else:
        left = right = value
    sides = zip(("window[0]", "window[1]"), (left, right), strict=True)
    before, after = (-1 if x is None else min(integer(name, x, 0), _FAR) for name, x in sides)
    return before, after


def _positions(offset: Any, n: int, queries: Array | int, keys: Array | int) -> Array | None:
    """Return where the first query of each sequence stands; None: on its first key."""
    if offset is None:
        return None
    if isinstance(offset, str):
        if offset != "end":
            raise wrong("query_offset", 'integers or "end"', repr(offset))
        return np.full(n, np.subtract(keys, queries), np.int64)
    if isinstance(offset, int | np.integer) and not isinstance(offset, bool):
        if offset == 0:
            return None
        return np.full(n, integer("query_offset", offset, -_FAR, _FAR), np.int64)
    return _integers("query_offset", offset, n, -_FAR, _FAR)


def _integers(name: str, x: Any, n: int, low: int, high: int) -> Array:
    """Take in an integer for each of n sequences, from low to high - 1."""
    array = x if isinstance(x, np.ndarray) else None
    if array is None:
        array = np.asarray(x) if isinstance(x, list | tuple | int) else borrow(name, x)[0]
    if array.dtype.kind not in "iu" and array.size:
        raise wrong_type(name, "integers", array.dtype.name)
    if array.shape != (n,):
        raise wrong(name, dims(n), array.shape)
    if array.size and not (low <= array.min() and array.max() < high):
        raise wrong(name, f"integers from {low} to {high - 1}", array.tolist())
    return np.ascontiguousarray(array, np.int64)


def _floats(
    name: str, x: Any, compute: np.dtype[Any], shapes: tuple[tuple[int, ...], ...]
) -> tuple[Array, Kind]:
    """Take in floats of any floating dtype, of one of the shapes."""
    array, kind = (np.asarray(x), None) if isinstance(x, list | tuple) else borrow(name, x)
    kind = kind or Kind(compute)
    if not kind.bfloat16 and array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise wrong_type(name, "floats", array.dtype.name)
    if array.shape not in shapes:
        raise wrong(name, " or ".join(dims(*shape) for shape in shapes), array.shape)
    return np.ascontiguousarray(decode(array, compute, kind.bfloat16)), kind
