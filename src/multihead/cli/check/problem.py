"""A call of the package beside what the float64 oracle says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import multihead as mh
from multihead.cli.elements import store, widen

Array: TypeAlias = NDArray[np.float64]
Found: TypeAlias = dict[str, Array]

OUTPUTS = ("out", "weights", "lse")  # what else there is are gradients


class Problem(NamedTuple):
    """A call that can be made again on any kernel set, and its results in float64 by name."""

    run: Callable[[], Found]
    expected: Found


class Numbers:
    """Random numbers in a dtype: as the package takes them, and as the oracle does, exactly.

    Parameters
    ----------
    dtype : str
    seed : int

    Examples
    --------
    >>> given, exact = Numbers("float16", 0).normal(2, 3)
    >>> given.dtype.name, exact.dtype.name, bool((given == exact).all())
    ('float16', 'float64', True)
    """

    def __init__(self, dtype: str, seed: int) -> None:
        self.dtype, self.rng = dtype, np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> tuple[Any, Array]:
        """Draw numbers."""
        given = store(scale * self.rng.standard_normal(shape), self.dtype)
        return given, widen(given)

    def hidden(self, *shape: int) -> NDArray[np.bool_]:
        """Draw a boolean mask, True for three in ten."""
        return self.rng.random(shape) < 0.3

    def mask(self, *shape: int) -> NDArray[Any]:
        """Draw an additive mask that hides three in ten, of the dtype computed in."""
        numbers = np.where(self.hidden(*shape), -np.inf, self.rng.standard_normal(shape))
        return numbers.astype("float64" if self.dtype == "float64" else "float32")

    def layer(self, options: Mapping[str, Any]) -> tuple[mh.MultiheadAttention, Found]:
        """Make a layer of random parameters, biases too, and return these besides."""
        layer = mh.MultiheadAttention(**options, batch_first=True, dtype=self.dtype, seed=1)
        shapes = {name: array.shape for name, array in layer.state_dict().items()}
        drawn = {
            name: self.normal(*shape, scale=(shape[-1] if len(shape) == 2 else 4) ** -0.5)
            for name, shape in shapes.items()
        }
        layer.load_state_dict({name: given for name, (given, _) in drawn.items()})
        return layer, {name: exact for name, (_, exact) in drawn.items()}
