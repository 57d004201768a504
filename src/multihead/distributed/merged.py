"""The result of a run of queries, added up block by block of keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead.arrays import Array
from multihead.distributed import blocks
from multihead.distributed.blocks import Keys
from multihead.distributed.problem import Problem
from multihead.distributed.sharding import Run

_LOG2E = 1 / np.log(2.0)


def log2_scores(sinks: Array) -> Array:
    """Return scores in log2 units, rounded as statistics are, in float64."""
    rounded: Array = (sinks.astype(np.float64) * _LOG2E).astype(sinks.dtype)
    return rounded.astype(np.float64)


class Merged:
    """One run's output, and the statistics of its rows.

    Statistics are added up in float64, as largest score (in log2 units) and sum of exponentials:
    the logarithm of a sum, which float32 holds to 1e-6 at best, is formed once, at the end.
    Blocks are added in the order in which `add` is called.

    Parameters
    ----------
    out : ndarray (N, H, L, Dv)
        Where the output of the run goes.
    """

    def __init__(self, problem: Problem, run: Run, out: Array) -> None:
        self.run, self._problem, self._out = run, problem, out
        self._top = np.full(out.shape[:-1], -np.inf)
        self._sum = np.zeros(out.shape[:-1])
        self._begun = False

    def add(self, of: Keys, keys: Run) -> None:
        """Add what the run's queries see of a run of keys."""
        out, stats = self._room()
        blocks.forward(self._problem, self.run, keys, of, out, stats)
        self._take_in(out, stats)

    def add_extra(self) -> None:
        """Add the extra key, which all queries see."""
        out, stats = self._room()
        blocks.forward_extra(self._problem, self.run, out, stats)
        self._take_in(out, stats)

    def _room(self) -> tuple[Array, Array]:
        """Make room for the output and the statistics of a block."""
        compute = self._out.dtype
        out = np.empty(self._out.shape, compute) if self._begun else self._out
        return out, np.empty((2, *self._top.shape), compute)

    def _take_in(self, out: Array, stats: Array) -> None:
        """Add a block that has been computed."""
        seen = stats[1] != 0
        top = np.where(seen, stats[0], -np.inf).astype(np.float64)
        total = np.divide(1.0, stats[1], where=seen, out=np.zeros_like(self._sum))
        if not self._begun:
            self._begun, self._top, self._sum = True, top, total
            return
        mine, theirs = self._join(top, total)
        self._out *= mine[..., None]
        out *= theirs[..., None]
        self._out += out

    def add_sinks(self, sinks: Array) -> None:
        """Add to rows that see a key the score of their head, (H,), which has no value."""
        if not self._begun:
            return
        top = np.where(self._sum > 0, log2_scores(sinks)[:, None], -np.inf)
        mine, _ = self._join(top, (self._sum > 0).astype(np.float64))
        self._out *= mine[..., None]

    def finish(self, stats: Array) -> None:
        """Write the statistics of backward, (2, N, H, L); rows that see nothing are 0."""
        if not self._begun:
            self._out[...] = 0
        seen = self._sum > 0
        stats[0] = np.where(seen, self._top, np.inf)
        stats[1] = np.divide(1.0, self._sum, where=seen, out=np.zeros_like(self._sum))

    def log_sums(self) -> Array:
        """Return the natural logarithms of the sums, -inf where nothing is seen."""
        with np.errstate(divide="ignore"):
            found: Array = self._top / _LOG2E + np.log(self._sum)
        return found

    def _join(self, top: Any, total: Array) -> tuple[Array, Array]:
        """Take in more sums; return the parts of before and of now in the whole."""
        highest = np.maximum(self._top, top)
        finite = np.where(np.isneginf(highest), 0.0, highest)
        mine = self._sum * np.exp2(self._top - finite)
        theirs = total * np.exp2(top - finite)
        self._top, self._sum = highest, mine + theirs
        whole = np.where(self._sum > 0, self._sum, 1.0)
        compute = self._out.dtype
        return (mine / whole).astype(compute), (theirs / whole).astype(compute)
