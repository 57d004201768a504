"""The one table of tolerances: largest error over the largest reference entry."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

FORWARD, GRADIENT, TORCH = "forward", "gradient", "torch"

TOLERANCE: dict[str, dict[str, float]] = {
    FORWARD: {"float32": 2e-6, "float64": 1e-12, "float16": 1e-3, "bfloat16": 8e-3},
    GRADIENT: {"float32": 1e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 16e-3},
    TORCH: {"float32": 1e-5, "float64": 1e-12},
}
CANCELLED = 0.1  # a gradient below this share of its terms is measured against that share of them
CENTRAL_DIFFERENCES = 1e-7  # of float64, with a step of 1e-5


def tolerance(kind: str, dtype: Any) -> float:
    """Return the bound for one kind of comparison in one dtype.

    Examples
    --------
    >>> tolerance(FORWARD, np.float32), tolerance(GRADIENT, "bfloat16")
    (2e-06, 0.016)
    """
    known = isinstance(dtype, str) and dtype in TOLERANCE[kind]
    return TOLERANCE[kind][dtype if known else np.dtype(dtype).name]


def error(actual: ArrayLike, expected: ArrayLike, scale: float = 0.0) -> float:
    """Return the largest error over the largest finite expected entry, or `scale` if that is more.

    It is infinite where shapes differ, or where numbers are not finite in the same places.

    Examples
    --------
    >>> error([1.0, 2.5], [1.0, 2.0]), error([0.0, np.nan], [0.0, 1.0])
    (0.25, inf)
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return np.inf
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    if not (np.isfinite(actual) == finite).all():
        return np.inf
    if not finite.any():
        return 0.0
    difference = float(np.abs(actual[finite] - expected[finite]).max())
    if not difference:
        return 0.0
    largest = max(float(np.abs(expected[finite]).max()), scale)
    return difference / largest if largest else np.inf
