"""Numbers for the net that are the same everywhere, arrays made of them, and a digest of bits.

NumPy does not promise the stream of its generators, so the words here are splitmix64's (Steele et
al., 2014), and floats come from them by arithmetic that rounds nowhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any
_STEP, _WORD = 0x9E3779B97F4A7C15, 2**64


class Draws:
    """A stream of random numbers; it has those methods of `np.random.Generator` that tests use."""

    def __init__(self, name: str) -> None:
        self.state = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")

    def words(self, n: int) -> Array:
        """The next n words, uint64."""
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(self.state)
        self.state = (self.state + n * _STEP) % _WORD
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def integers(self, low: int, high: int | None = None) -> int:
        """One from low to high - 1, or from 0 to low - 1."""
        low, high = (0, low) if high is None else (low, high)
        return low + int(self.words(1)[0]) % (high - low)

    def random(self, shape: Any = None) -> Any:
        """Multiples of 2**-53 in [0, 1)."""
        sizes = shape if isinstance(shape, tuple) else (1 if shape is None else shape,)
        x = (self.words(math.prod(sizes)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return float(x[0]) if shape is None else x.reshape(sizes)

    def standard_normal(self, shape: tuple[int, ...]) -> Array:
        """Sums of four uniform numbers, near enough to normal, with 50 random bits each."""
        z = self.words(math.prod(shape))
        parts = [(z >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)]
        total = parts[0] + parts[1] + parts[2] + parts[3]
        tail = (z * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)
        exact = total.astype(np.float64) - 131070.0 + tail.astype(np.float64) * 2.0**-32
        return (exact * 2.0**-15).reshape(shape)

    def choice(self, options: Sequence[Any]) -> Any:
        """One of them."""
        return options[self.integers(len(options))]

    def flip(self, p: float = 0.5) -> bool:
        """True with probability p."""
        return bool(self.random() < p)


def strided(draws: Draws, x: Array, p: float = 0.4) -> Array:
    """The same values, with probability p in memory that is not contiguous."""
    if x.ndim == 0 or not draws.flip(p):
        return x
    way = draws.integers(4)
    if way == 0:  # every other element
        room = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 1), x.dtype)
        view = room[..., 1::2]
    elif way == 1:  # rows with a gap behind
        room = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
        view = room[..., : x.shape[-1]]
    elif way == 2:  # the axes the other way round
        room = np.zeros(x.shape[::-1], x.dtype)
        view = room.T
    else:  # backwards
        room = np.zeros(x.shape, x.dtype)
        view = room[::-1]
    view[...] = x
    return view


def normal(draws: Draws, shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> Array:
    """Normal numbers times a power of two."""
    return np.asarray(draws.standard_normal(shape) * scale).astype(dtype)


def mask_of(draws: Draws, kind: str, shape: tuple[int, ...], dtype: Any, true_hides: bool) -> Array:
    """A bool or float mask; it may hide single pairs, runs, all of a row or nothing."""
    hides = np.asarray(draws.random(shape) < draws.choice([0.0, 0.1, 0.3, 0.9]))
    way = draws.integers(4)
    if hides.ndim and hides.shape[-1] and way == 0:  # a run of keys, and with it whole tiles
        hides[..., draws.integers(hides.shape[-1]) :] = True
    if hides.ndim > 1 and hides.shape[-2] and way == 1:  # a row that sees nothing
        hides[..., draws.integers(hides.shape[-2]), :] = True
    if kind == "bool":
        return np.asarray(hides if true_hides else ~hides)
    adds = normal(draws, shape, dtype, draws.choice([0.5, 1.0, 4.0]))
    if draws.flip(0.3):
        return adds
    return np.where(hides, np.asarray(-np.inf, dtype), adds)


class Digest:
    """A hash of the bits of results; every NaN counts as the same one."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, *results: Any) -> None:
        """Take in arrays, None, and nested sequences of them."""
        for x in results:
            if x is None or isinstance(x, int | str):
                self._sha.update(repr(x).encode())
            elif isinstance(x, list | tuple):
                self._sha.update(f"[{len(x)}".encode())
                self.add(*x)
            else:
                self._sha.update(f"{x.dtype.name}{x.shape}".encode())
                bits = np.array(x, order="C")
                if bits.dtype.kind not in "biu":
                    bits[bits != bits] = np.nan
                self._sha.update(bits.tobytes())

    def __str__(self) -> str:
        return self._sha.hexdigest()[:16]
