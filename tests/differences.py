"""Central differences in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def central_difference(
    loss: Callable[[], float], variable: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    """The gradient of `loss` with respect to an array that it reads, changed in place.

    Entries that are not finite have no gradient: they get zero.
    """
    grad = np.zeros(variable.shape)
    for index in np.ndindex(variable.shape):
        centre = variable[index]
        if not np.isfinite(centre):
            continue
        variable[index] = centre + step
        above = loss()
        variable[index] = centre - step
        below = loss()
        variable[index] = centre
        grad[index] = (above - below) / (2 * step)
    return grad
