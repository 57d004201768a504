"""Rotary positions alone: an array turned by them, and its gradient turned back."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from multihead.arrays import Array, borrow, decode, dtype_name, element_of, read, restore
from multihead.checks import wrong, wrong_type
from multihead.rope import Rope

A = TypeVar("A")


def rotate(x: A, rope: Rope, positions: Any = None) -> A:
    """Turn the features of tokens by the angles of their positions.

    Parameters
    ----------
    x : array of shape (..., L, D)
        Queries or keys, of float32, float64, float16 or bfloat16.
    rope : Rope
    positions : array_like of int, optional
        Of the tokens, from 0 on: (L,), or broadcastable to (..., L). 0 to L - 1 by default.

    Returns
    -------
    array like x

    Raises
    ------
    ValueError
        If shapes do not fit, a position is negative or the rope's own table is too short.
    TypeError
        If an argument is of another type.

    See Also
    --------
    rotate_backward : The gradient.

    Examples
    --------
    >>> import numpy as np
    >>> import multihead as mh
    >>> q, k = np.ones((1, 4), np.float32), np.ones((1, 4), np.float32)
    >>> def product(i, j):  # the same for the same distance
    ...     turned = (mh.functional.rotate(x, mh.Rope(), [p]) for x, p in ((q, i), (k, j)))
    ...     return round(float(np.vdot(*turned)), 3)
    >>> product(7, 5), product(102, 100)
    (1.167, 1.167)
    """
    turned: A = _turned("x", x, rope, positions, back=False)
    return turned


def rotate_backward(d_out: A, rope: Rope, positions: Any = None) -> A:
    """Return the gradient of what `rotate` turned: `d_out` turned back.

    Parameters
    ----------
    d_out : array of shape (..., L, D)
    rope, positions
        Those of `rotate`.

    Returns
    -------
    array like d_out

    Raises
    ------
    ValueError, TypeError
        As `rotate`.

    Examples
    --------
    >>> import numpy as np
    >>> import multihead as mh
    >>> x = np.random.default_rng(0).normal(size=(5, 8))
    >>> turned = mh.functional.rotate(x, mh.Rope())
    >>> np.allclose(mh.functional.rotate_backward(turned, mh.Rope()), x)
    True
    """
    turned: A = _turned("d_out", d_out, rope, positions, back=True)
    return turned


def _turned(name: str, x: Any, rope: Rope, positions: Any, *, back: bool) -> Any:
    if not isinstance(rope, Rope):
        raise wrong_type("rope", "a Rope", type(rope).__name__)
    raw, kind = borrow(name, x)
    element = element_of(dtype_name(raw, kind), name)
    array, _, kind = read(name, x, element, "")
    if array.ndim < 2:
        raise wrong(name, "(..., L, D)", array.shape)
    *_, length, features = array.shape
    places = np.arange(length) if positions is None else np.asarray(positions)
    if places.dtype.kind not in "iu":
        raise wrong_type("positions", "integers", places.dtype.name)
    if places.size and places.min() < 0:
        raise wrong("positions", "integers from 0 on", int(places.min()))
    try:
        np.broadcast_to(places, array.shape[:-1])
    except ValueError:
        raise wrong("positions", f"broadcastable to {array.shape[:-1]}", places.shape) from None
    furthest = int(places.max()) + 1 if places.size else 0
    wide = decode(array, element.compute, kind.bfloat16)
    c, s = (t.T.take(places, axis=0) for t in rope.angles(features, furthest, element.compute))
    return restore(turned_by(wide, c, -s if back else s, rope.layout), kind)


def turned_by(x: Array, cosine: Array, sine: Array, layout: str) -> Array:
    """Return features turned by angles that broadcast to (..., L, pairs); back with -sine."""
    first, second = halves(cosine.shape[-1], layout)
    turned = np.array(x)
    a, b = x[..., first], x[..., second]
    turned[..., first] = a * cosine - b * sine
    turned[..., second] = b * cosine + a * sine
    return turned


def halves(pairs: int, layout: str) -> tuple[slice, slice]:
    """Return the features that come first and second in their pairs."""
    if layout == "interleaved":
        return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    return slice(0, pairs), slice(pairs, 2 * pairs)
