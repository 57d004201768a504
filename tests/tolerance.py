"""The one table of tolerances: largest error over the largest reference entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

FORWARD, GRADIENT, TORCH = "forward", "gradient", "torch"

TOLERANCE: dict[str, dict[str, float]] = {
    FORWARD: {"float32": 2e-6, "float64": 1e-12, "float16": 1e-3, "bfloat16": 8e-3},
    GRADIENT: {"float32": 1e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 16e-3},
    TORCH: {"float32": 1e-5, "float64": 1e-12},
}
CANCELLED = 0.1  # a gradient below this share of its terms is measured against that share of them
CENTRAL_DIFFERENCES = 1e-7  # of float64, with a step of 1e-5


def tolerance(kind: str, dtype: Any) -> float:
    """The bound for one kind of comparison in one dtype."""
    name = "bfloat16" if dtype == ml_dtypes.bfloat16 else np.dtype(dtype).name
    return TOLERANCE[kind][name]


def error(actual: Any, expected: Any, name: str = "", *, scale: float = 0.0) -> float:
    """Largest error over the largest finite reference entry, or over `scale` if that is larger.

    Shapes agree, and what is not finite is so in the same places.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    assert (np.isfinite(actual) == finite).all(), f"{name}: not finite in other places"
    if not finite.any():
        return 0.0
    largest = max(float(np.abs(expected[finite]).max()), scale)
    difference = float(np.abs(actual[finite] - expected[finite]).max())
    if not difference:
        return 0.0
    return difference / largest if largest else np.inf


def assert_close(
    actual: Any, expected: Any, bound: float, name: str = "", *, scale: float = 0.0
) -> None:
    """Assert that the error is within the bound; see `error`."""
    reached = error(actual, expected, name, scale=scale)
    assert reached <= bound, f"{name}: error {reached:.3g} of the largest entry, bound {bound:.3g}"


def assert_all_close(
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    bound: float,
    note: object = "",
    *,
    sizes: Mapping[str, float] | None = None,
) -> None:
    """Assert that two dicts of gradients agree, name by name.

    `sizes` holds how large a gradient would be if its terms did not cancel; see `magnitudes`.
    """
    assert set(actual) == set(expected), f"{sorted(actual)} are not {sorted(expected)} {note}"
    for name, reference in expected.items():
        scale = CANCELLED * (sizes or {}).get(name, 0.0)
        assert_close(actual[name], reference, bound, f"d_{name} {note}", scale=scale)
