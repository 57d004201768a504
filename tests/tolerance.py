"""Assertions within the one table of tolerances, `multihead.tolerance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from multihead.tolerance import (
    CANCELLED,
    CENTRAL_DIFFERENCES,
    FORWARD,
    GRADIENT,
    TORCH,
    tolerance,
)
from multihead.tolerance import error as error_of

__all__ = [
    "CANCELLED",
    "CENTRAL_DIFFERENCES",
    "FORWARD",
    "GRADIENT",
    "TORCH",
    "assert_all_close",
    "assert_close",
    "error",
    "tolerance",
]


def error(actual: Any, expected: Any, name: str = "", *, scale: float = 0.0) -> float:
    """Largest error over the largest finite reference entry, or over `scale` if that is larger.

    Shapes agree, and what is not finite is so in the same places.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    same = np.isfinite(actual.astype(np.float64)) == np.isfinite(expected.astype(np.float64))
    assert same.all(), f"{name}: not finite in other places"
    return error_of(actual, expected, scale)


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
