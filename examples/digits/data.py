"""Handwritten digits as sequences of patches."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array = NDArray[Any]


class Split(NamedTuple):
    """Images (N, 8, 8) in [0, 1] and labels (N,) of the two parts of the data."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load_split(seed: int, test_share: float = 0.25) -> Split:
    """Load the 1797 scans and split them, shuffled and stratified by digit."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=test_share, stratify=labels, random_state=seed
    )
    return Split(train_x, train_y, test_x, test_y)


def patches(images: Array, size: int) -> Array:
    """Cut images (N, h, w) into patches (N, T, size * size), row by row."""
    count, height, width = images.shape
    grid = images.reshape(count, height // size, size, width // size, size)
    cut: Array = grid.swapaxes(2, 3).reshape(count, -1, size * size)
    return cut


def jitter(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Turn, scale, slant and shift every (h, w) image a little, each in its own way.

    The pixels are read at the moved places by bilinear interpolation; outside the scan is 0.
    """
    count, height, width = images.shape
    turn = rng.normal(0, 0.08, (count, 1, 1))
    slant = rng.normal(0, 0.08, (count, 1, 1))
    scale_y, scale_x = rng.normal(1, 0.05, (2, count, 1, 1))
    shift_y, shift_x = rng.normal(0, 0.25, (2, count, 1, 1))
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width)[None, :] - (width - 1) / 2
    from_y = scale_y * (np.cos(turn) * y + np.sin(turn) * x) + shift_y + (height - 1) / 2
    from_x = scale_x * (np.cos(turn) * x - np.sin(turn) * y + slant * y) + shift_x + (width - 1) / 2

    padded = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    from_y = np.clip(from_y + 1, 0, height + 1)
    from_x = np.clip(from_x + 1, 0, width + 1)
    top, left = from_y.astype(np.intp), from_x.astype(np.intp)
    down, right = (from_y - top).astype(np.float32), (from_x - left).astype(np.float32)
    n = np.arange(count)[:, None, None]
    upper = padded[n, top, left] * (1 - right) + padded[n, top, left + 1] * right
    lower = padded[n, top + 1, left] * (1 - right) + padded[n, top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, dtype=np.float32)
