"""The figures that the benchmark is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from multihead.bench.suite import Cell

GEOMETRIC_MEAN = 1.25
WORST_CELL = 0.9
LONG_DROPOUT = 2.5
# below this share of the FMA limit a dense training step has lost something it had
DENSE_TRAINING_SHARE = 0.6


@dataclass(frozen=True)
class Bar:
    """One figure against its target; a value of None was not measured."""

    name: str
    target: float
    value: float | None
    where: str = ""

    @property
    def verdict(self) -> str:
        """``"met"``, ``"missed"`` or ``"not measured"``."""
        if self.value is None:
            return "not measured"
        return "met" if self.value >= self.target else "missed"


def worst(cells: Sequence[Cell]) -> tuple[float, Cell] | None:
    """Return the lowest ratio torch / ours and its cell; None without torch."""
    ratios = [(ratio, cell) for cell in cells if (ratio := cell.ratio) is not None]
    return min(ratios, key=lambda pair: pair[0], default=None)


def mean_ratio(cells: Sequence[Cell]) -> float | None:
    """Return the geometric mean of torch / ours; None without torch."""
    ratios = [ratio for cell in cells if (ratio := cell.ratio) is not None]
    return geometric_mean(ratios) if ratios else None


def bars(cells: Sequence[Cell]) -> list[Bar]:
    """Hold the measured cells against every bar.

    Parameters
    ----------
    cells : sequence of Cell
        The grid, or a part of it.

    Returns
    -------
    list of Bar
        Geometric mean, worst cell, training with dropout at L = 2048, and the lowest share of the
        FMA limit among the dense training cells with L >= 512.
    """
    lowest = worst(cells)
    dropped = [
        ratio
        for cell in cells
        if cell.case.mode.dropout
        and cell.case.shape.length == 2048
        and (ratio := cell.ratio) is not None
    ]
    dense = [
        cell
        for cell in cells
        if cell.case.mode.training and cell.case.mode.dense and cell.case.shape.length >= 512
    ]
    slowest = min(dense, key=lambda cell: cell.share, default=None)
    return [
        Bar("geometric mean, torch / ours", GEOMETRIC_MEAN, mean_ratio(cells)),
        Bar(
            "worst cell, torch / ours",
            WORST_CELL,
            lowest[0] if lowest else None,
            str(lowest[1].case) if lowest else "",
        ),
        Bar(
            "train + dropout at L = 2048, torch / ours",
            LONG_DROPOUT,
            min(dropped, default=None),
        ),
        Bar(
            "dense training at L >= 512, share of the FMA limit",
            DENSE_TRAINING_SHARE,
            slowest.share if slowest else None,
            str(slowest.case) if slowest else "",
        ),
    ]
