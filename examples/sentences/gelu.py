"""GELU with the exact erf, x / 2 * (1 + erf(x / sqrt(2))), of Hendrycks and Gimpel (2016).

NumPy has no erf, but a tanh in SIMD: erf(x / sqrt(2)) is tanh(x * P(x^2)) for some smooth P, and a
polynomial of degree 6 for P is all that float32 can tell from it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _fitted(degree: int = 6, farthest: float = 5.6) -> list[float]:
    """Fit P by least squares of the errors of GELU; beyond the farthest x, erf rounds to 1."""
    x = np.linspace(1e-3, farthest, 2001)
    tail = np.array([math.erfc(v) for v in x / math.sqrt(2)])
    inner = np.log((2 - tail) / tail) / 2  # tanh of it is erf
    slope = x * x / np.cosh(inner) ** 2  # of GELU's error, with P's
    fit = np.polynomial.Polynomial.fit(x * x, inner / x, degree, w=slope)
    return [float(c) for c in fit.convert().coef]


_P = _fitted()


def one_plus_erf(x: Array, square: Array, out: Array) -> Array:
    """Write 1 + erf(x / sqrt(2)) to `out`: twice the normal distribution function at x.

    Parameters
    ----------
    x : array of float32
    square, out : arrays shaped like x
        Memory to write to; x^2 is left in `square`.
    """
    np.multiply(x, x, out=square)
    np.multiply(square, _P[-1], out=out)
    for c in _P[-2:0:-1]:
        out += c
        out *= square
    out += _P[0]
    out *= x
    np.tanh(out, out=out)
    out += 1
    return out
