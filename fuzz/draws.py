"""Bytes as decisions.

The first eight bytes of an input seed a stream of numbers, each later one decides something, and
when they have run out the stream decides: every input is a whole call, the same one each time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import net_draws

_WORD, _STEP = 2**64, 0x9E3779B97F4A7C15
LIMITS = (0, 1, -1, 2, 2**31 - 1, 2**31, 2**32, 2**40, 2**46, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)


class Draws(net_draws.Draws):
    """A stream of numbers; it has the methods of `np.random.Generator` that tests use."""

    def __init__(self, data: bytes) -> None:
        self.state = int.from_bytes(data[:8].ljust(8, b"\0"), "little")
        self._bytes, self._at = data, 8

    def word(self) -> int:
        """The next word of the stream (splitmix64)."""
        self.state = z = (self.state + _STEP) % _WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
        return z ^ (z >> 31)

    def byte(self) -> int:
        """The next byte of the input, or one of the stream."""
        at = self._at
        if at < len(self._bytes):
            self._at = at + 1
            return self._bytes[at]
        return self.word() >> 56

    def integers(self, low: int, high: int | None = None, size: Any = None) -> Any:
        """One from low to high - 1, or from 0 to low - 1; or an array of them."""
        low, high = (0, low) if high is None else (low, high)
        if size is not None:
            shape = size if isinstance(size, tuple) else (size,)
            words = self.words(math.prod(shape)) % np.uint64(high - low)
            return (words.astype(np.int64) + low).reshape(shape)
        x, most = self.byte(), 256
        while most < high - low and most < 2**64:
            x, most = x << 8 | self.byte(), most << 8
        return low + x % (high - low)

    def random(self, shape: Any = None) -> Any:
        """From 0 to 1, without 1: one by a byte, or an array of the stream."""
        return self.byte() / 256 if shape is None else super().random(shape)

    def flip(self, p: float = 0.5) -> bool:
        """True with probability p."""
        return self.byte() < 256 * p

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> Any:
        """Nearly normal numbers."""
        shape = (1,) if size is None else size if isinstance(size, tuple) else (size,)
        drawn = loc + scale * self.standard_normal(shape)
        return float(drawn[0]) if size is None else drawn

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        """From low to high."""
        shape = size if size is None or isinstance(size, tuple) else (size,)
        return low + (high - low) * self.random(shape)

    def limit(self) -> int:
        """A number at a limit, or near one."""
        return int(self.choice(LIMITS)) + (self.integers(3) - 1 if self.flip(0.3) else 0)

    def raw(self, size: int) -> bytes:
        """So many bytes of the stream."""
        return self.words(-(-size // 8)).tobytes()[:size]
