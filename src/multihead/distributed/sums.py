"""Gradients that several blocks add to, in the dtype computed in."""

from __future__ import annotations

import numpy as np

from multihead.arrays import Array
from multihead.distributed.blocks import part
from multihead.distributed.sharding import Run


class Sums:
    """An array of gradients, added up run by run; the first block of a run writes where it lies."""

    def __init__(self, like: Array, compute: np.dtype[np.floating], packed: bool) -> None:
        self.array: Array = np.empty(like.shape, compute)
        self._packed = packed
        self._begun: set[Run] = set()

    def target(self, run: Run) -> Array:
        """Return where the next block of a run writes."""
        here = part(self.array, run, self._packed)
        return np.empty(here.shape, here.dtype) if run in self._begun else here

    def add(self, run: Run, written: Array) -> None:
        """Add what a block has written to `target`."""
        if run in self._begun:
            here = part(self.array, run, self._packed)
            here += written
        self._begun.add(run)

    def finish(self, runs: list[Run]) -> Array:
        """Return the sums; what no block wrote is 0."""
        for run in runs:
            if run not in self._begun:
                part(self.array, run, self._packed)[...] = 0
        return self.array
