"""What stands between a layer's projections and its weights, besides masks: options it keeps."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from multihead.arrays import Array
from multihead.checks import boolean, integer
from multihead.rope import Rope, rope_of
from multihead.score_rules import Window, cap_of, sides_of


class LayerRules(NamedTuple):
    """The rules of a layer, checked.

    Attributes
    ----------
    softcap : float
        0: none.
    window : tuple of two int
        Keys seen before and after a query's own place; -1: all.
    alibi : bool
        Scores fall with the distance, by `alibi_slopes`.
    rope : Rope or None
    """

    softcap: float = 0.0
    window: tuple[int, int] = (-1, -1)
    alibi: bool = False
    rope: Rope | None = None

    @property
    def flat(self) -> tuple[float, int, int, bool]:
        """What the engine's options say of them: softcap, both sides of the window, pairing."""
        interleaved = self.rope is not None and self.rope.layout == "interleaved"
        return (self.softcap, *self.window, interleaved)

    def slopes(self, heads: int, dtype: np.dtype[Any]) -> Array | None:
        """Return the slopes of ALiBi, (H,), if the layer has any."""
        return _slopes(heads, dtype) if self.alibi else None

    def options(self) -> dict[str, Any]:
        """Return them as the layer's constructor takes them."""
        left, right = (None if side < 0 else side for side in self.window)
        return {
            "window": None if left is right is None else (left, right),
            "softcap": self.softcap or None,
            "alibi": self.alibi,
            "rope": self.rope,
        }


def layer_rules(
    head_dim: int,
    window: Window = None,
    softcap: float | None = None,
    alibi: bool = False,
    rope: Any = None,
) -> LayerRules:
    """Check the options of a layer whose heads have so many features, or raise."""
    sides, cap = sides_of(window), cap_of(softcap)
    return LayerRules(cap, sides, boolean("alibi", alibi), rope_of(rope, head_dim))


def alibi_slopes(num_heads: int) -> list[float]:
    """Return the slopes of Press et al., "Train Short, Test Long" (2022), one for each head.

    For a power of two they are ``2 ** (-8 (h + 1) / H)``. Another number of heads has those of the
    power of two below, then every other one of the power above.

    Parameters
    ----------
    num_heads : int

    Returns
    -------
    list of float

    Raises
    ------
    ValueError, TypeError
        If `num_heads` is no positive integer.

    Examples
    --------
    >>> from multihead.functional import alibi_slopes
    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    num_heads = integer("num_heads", num_heads, 1)
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * power, 2)]
    return slopes + between[: num_heads - power]


@functools.lru_cache(maxsize=64)
def _slopes(heads: int, dtype: np.dtype[Any]) -> Array:
    return np.array(alibi_slopes(heads), dtype)
