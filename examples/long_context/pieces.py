"""Pieces of a text, and the part of each that a rank reads."""

from __future__ import annotations

import numpy as np
import torch
from text import load_text
from torch import Tensor

from multihead.distributed import ContextParallel


def longest() -> int:
    """Count the bytes of the longest piece."""
    return len(load_text()[0]) - 1


class Pieces:
    """A piece of the text for each step: the same on any number of ranks, and after a pause."""

    def __init__(self, length: int, seed: int, parallel: ContextParallel) -> None:
        self._text, _ = load_text()
        self._length, self._seed = length, seed
        self._held = parallel.positions(length)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this rank's bytes (1, L_r), and the byte after each in the whole text."""
        rng = np.random.default_rng([self._seed, step])
        start = rng.integers(0, len(self._text) - self._length)
        places = start + self._held
        text, following = (self._text[places + i].astype(np.int64)[None] for i in (0, 1))
        return torch.from_numpy(text), torch.from_numpy(following)
