"""Values that no argument should have, and arrays that lie in memory as few do."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import net_draws
from fuzz.draws import Draws

NOT_FLOATS = (
    "bool",
    "int8",
    "int64",
    "uint16",
    "uint64",
    "complex64",
    "complex128",
    "O",
    "U3",
    "M8[s]",
)
LARGEST = 1 << 24  # bytes that a draw may copy: arrays of a few bytes, counted often, claim more
HUGE = ((2**31, 4), (2**40, 8), (1, 2**45), (2**20, 2**20, 4), (2**14, 2**14, 2**14, 2**14))


def arrays_of(draws: Draws, x: Any) -> Any:
    """An array in the place of another, of the same values mostly, that is wrong somewhere."""
    if x.nbytes > LARGEST:
        return anything(draws)
    way = draws.integers(10)
    if way == 0 or x.ndim == 0:
        return x[..., None]
    if way == 1 and x.ndim > 1 and len(x):
        return x[0]
    if way == 2:
        return np.concatenate([x, x], -1) if x.size else x[None]
    if way == 3 and x.shape[-1] > 1:
        return x[..., :-1]
    if way == 4:
        return np.zeros(x.shape, draws.choice(NOT_FLOATS))
    if way == 5:
        dtype = draws.choice(["float16", "float32", "float64", "longdouble", ml_dtypes.bfloat16])
        return x.astype(dtype)
    if way == 6:
        return np.broadcast_to(x.dtype.type(1), draws.choice(HUGE))
    if way == 7:
        return np.ma.masked_array(x)
    if way == 8 and x.ndim > 1:
        return x.swapaxes(0, -1)
    return anything(draws)


def anything(draws: Draws) -> Any:
    """A value of any kind."""
    return draws.choice(
        [
            None,
            True,
            draws.limit(),
            10**400,
            float("nan"),
            float("inf"),
            -0.5,
            1e300,
            2j,
            "end",
            "\udcff",
            b"x",
            [],
            [1, [2]],
            (1, 2, 3),
            {},
            {"a": 1},
            object(),
            np.float64(3),
            np.array(1.0),
            np.array([], np.float32),
            np.array([None]),
            np.zeros((2, 2), np.complex128),
            np.zeros(3, "V4"),
            np.int64(-1),
            int,
            ...,
            range(3),
        ]
    )


def placed(draws: Draws, x: Any) -> Any:
    """The same values, perhaps elsewhere: spread, turned, backwards, not aligned, swapped bytes."""
    if x.nbytes > LARGEST:
        return x
    way = draws.integers(12)
    if way == 0 and x.itemsize > 1 and x.dtype.kind == "f":
        room = np.zeros(x.nbytes + 1, np.uint8)
        view = room[1:].view(x.dtype) if not x.nbytes else np.ndarray(x.shape, x.dtype, room, 1)
        view = view.reshape(x.shape)
        view[...] = x
        return view
    if way == 1 and x.dtype.kind == "f":
        return x.astype(x.dtype.newbyteorder(">"))
    if way == 2 and x.dtype.kind == "f" and x.ndim and x.dtype.name != "bfloat16":
        view = x.copy()
        view.flags.writeable = False
        return view
    return net_draws.strided(draws, x)


def integers(draws: Draws, good: Any) -> Any:
    """Integers in the place of others."""
    x = np.array(good)
    way = draws.integers(8)
    if way == 0:
        return x.astype(np.float64)
    if way == 1:
        return x[:-1]
    if way == 2:
        return x[None]
    if way == 3:
        return anything(draws)
    wide = x.astype(np.uint64) if way == 4 else x.astype(np.int64)
    if way == 5 and wide.size > 3:  # differences that wrap around
        wide[1:-1] = ([2**63 - 1, -(2**63), -1] * wide.size)[: wide.size - 2]
        return wide
    if wide.size:
        at = draws.integers(wide.size)
        wide[at] = np.array(draws.limit() % 2**64, np.uint64).astype(wide.dtype)
    return wide
