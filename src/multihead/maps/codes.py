"""Weights in twelve bits each: small enough for a page, exact enough to read off.

A code c stands for the weight (c / 4095)², so that small weights, of which there are many, keep
their digits: a weight w comes back within √w / 4095, which is at most 0.00025.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 4095


def packed(weights: NDArray[Any]) -> str:
    """Return weights from 0 to 1 as base64: two codes of twelve bits in three bytes.

    Examples
    --------
    >>> import numpy as np
    >>> packed(np.array([0.0, 1.0]))
    'AA//'
    """
    codes = np.rint(np.sqrt(np.clip(weights, 0, 1)) * LARGEST).astype(np.uint16).ravel()
    first, second = np.append(codes, np.zeros(codes.size % 2, np.uint16)).reshape(-1, 2).T
    octets = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    return base64.b64encode(octets.astype(np.uint8).tobytes()).decode()


def unpacked(text: str, count: int) -> NDArray[np.float64]:
    """Return the first `count` weights of what `packed` made, as a page reads them.

    Examples
    --------
    >>> unpacked("AA//", 2)
    array([0., 1.])
    """
    octets = np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 3).astype(np.uint16)
    high, middle, low = octets.T
    codes = np.stack([high << 4 | middle >> 4, (middle & 15) << 8 | low], axis=1).ravel()
    weights: NDArray[np.float64] = (codes[:count] / LARGEST) ** 2
    return weights
