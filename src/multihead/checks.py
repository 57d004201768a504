"""The one form of an error: ``key: expected (S, N, 512) or (S, 512), got (7, 4, 500)``."""

from __future__ import annotations

import operator
from typing import Any


def dims(*sizes: int | str) -> str:
    """Write sizes, some of them known only by letter, as NumPy writes a shape."""
    return "(" + ", ".join(map(str, sizes)) + ("," if len(sizes) == 1 else "") + ")"


def wrong(name: str, expected: object, got: object) -> ValueError:
    """Make the error for an argument whose value or shape is wrong."""
    return ValueError(f"{name}: expected {expected}, got {got}")


def wrong_type(name: str, expected: object, got: object) -> TypeError:
    """Make the error for an argument whose type or dtype is wrong."""
    return TypeError(f"{name}: expected {expected}, got {got}")


def no_memory(name: str, shape: tuple[int, ...], dtype: object) -> MemoryError:
    """Make the error for an array that there is no memory for."""
    return MemoryError(f"{name}: no memory for an array {shape} of {dtype}")


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high), or raise."""
    if isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(name, "an integer", repr(value)) from None
    if number < low or (high is not None and number >= high):
        bound = f"at least {low}" if high is None else f"from {low} to {high - 1}"
        raise wrong(name, f"an integer {bound}", number)
    return number


def number(name: str, value: Any, expected: str = "a number") -> float:
    """Return `value` as a float, or raise; text and bools are no numbers."""
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise wrong_type(name, expected, repr(value)) from None
    except OverflowError:
        raise wrong(name, f"{expected} that is no larger than floats are", value) from None


def probability(name: str, value: Any) -> float:
    """Return `value` as a float in [0, 1], or raise."""
    found = number(name, value, "a number from 0 to 1")
    if not 0.0 <= found <= 1.0:
        raise wrong(name, "a number from 0 to 1", value)
    return found


def boolean(name: str, value: Any) -> bool:
    """Return `value`, a bool of Python, NumPy or a framework, or 0 or 1, as a bool, or raise."""
    if value is True or value is False:
        return bool(value)
    if getattr(value, "shape", None) == () and str(value.dtype).endswith("bool"):
        return bool(value)
    try:
        index = operator.index(value)
    except TypeError:
        raise wrong_type(name, "True or False", repr(value)) from None
    if index not in (0, 1):
        raise wrong(name, "True or False", repr(value))
    return bool(index)
