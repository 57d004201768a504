"""A text that ships with Python, as bytes: its own reference, 450 KB of prose and examples."""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data.topics import topics

import numpy as np
from nn import Array

Batch = tuple[Array, Array]  # bytes (N, L), and the byte after each, (N, L)


def load_text() -> tuple[Array, Array]:
    """Return the bytes to train on, and the last tenth, which is held out."""
    whole = "\n\n".join(topics[name] for name in sorted(topics))
    text = np.frombuffer(whole.encode(), np.uint8)
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def random_batches(text: Array, batch: int, length: int, seed: int) -> Iterator[Batch]:
    """Yield pieces from random places, forever."""
    rng = np.random.default_rng([seed, 1])
    while True:
        starts = rng.integers(0, len(text) - length, batch)
        pieces = text[starts[:, None] + np.arange(length + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


def whole_batches(text: Array, batch: int, length: int) -> Iterator[Batch]:
    """Yield a text from its start to its end, piece by piece."""
    pieces = text[: (len(text) - 1) // length * length].reshape(-1, length)
    following = text[1 : pieces.size + 1].reshape(-1, length)
    for first in range(0, len(pieces), batch):
        yield pieces[first : first + batch], following[first : first + batch]
