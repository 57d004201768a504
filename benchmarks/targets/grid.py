"""Targets that are read off the grid: against torch, and shares of the FMA limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean

from benchmarks.cases import GRID, MODES, QUICK, SHAPES, Case, Mode, Shape
from benchmarks.suite import Cell
from benchmarks.targets.target import Reached, Run, Target

TRAIN = next(mode for mode in MODES if mode.training and mode.dense)
LONG = tuple(shape for shape in SHAPES if shape.length >= 512)
SMALL = (SHAPES[6], SHAPES[0])
NARROW_HEADS = Shape(16, 512, 384, 12)
CHASED = 2.0


def worst(cells: Sequence[Cell]) -> tuple[float, Cell] | None:
    """Return the lowest ratio torch / ours and its cell; None without torch."""
    ratios = [(ratio, cell) for cell in cells if (ratio := cell.ratio) is not None]
    return min(ratios, key=lambda pair: pair[0], default=None)


def mean_ratio(cells: Sequence[Cell]) -> float | None:
    """Return the geometric mean of torch / ours; None without torch."""
    ratios = [ratio for cell in cells if (ratio := cell.ratio) is not None]
    return geometric_mean(ratios) if ratios else None


def _granted(cells: Sequence[Cell]) -> float:
    return fmean([cell.granted for cell in cells] or [1.0])


def _raced(run: Run, cases: Sequence[Case]) -> tuple[list[Cell], str]:
    """Those of the cells in which torch ran, and a note if some are missing."""
    cells = [run.cells[case] for case in cases if case in run.cells]
    cells = [cell for cell in cells if cell.ratio is not None]
    return cells, "" if len(cells) == len(cases) else f"{len(cells)} of {len(cases)} cells"


def mean_of(cases: Sequence[Case]) -> Callable[[Run], Reached]:
    """Return what measures the geometric mean of torch / ours over some cells."""

    def measure(run: Run) -> Reached:
        cells, note = _raced(run, cases)
        return Reached(mean_ratio(cells), note, _granted(cells))

    return measure


def _grid_mean(run: Run) -> Reached:
    cells, note = _raced(run, GRID)
    mean = mean_ratio(cells)
    record = "" if mean is None or mean >= CHASED else f"the record to chase is {CHASED:.1f}x"
    return Reached(mean, "; ".join(filter(None, (note, record))), _granted(cells))


def worst_of(run: Run) -> Reached:
    """Measure the lowest torch / ours of the grid."""
    cells, note = _raced(run, GRID)
    lowest = worst(cells)
    if lowest is None:
        return Reached(None, note)
    under = sum(1 for cell in cells if cell.ratio is not None and cell.ratio < 1)
    told = [note, f"at {lowest[1].case}", f"{under} cells under 1" if under else ""]
    return Reached(lowest[0], "; ".join(filter(None, told)), lowest[1].granted)


def _share(case: Case) -> Callable[[Run], Reached]:
    def measure(run: Run) -> Reached:
        cell = run.cell(case)
        limit = cell.limit.median
        rate = case.flops() / cell.ours
        # more than the limit: it was measured while we did not have the whole machine
        granted = min(cell.granted, 1 / cell.share)
        return Reached(cell.share, f"{rate / 1e9:.0f} of {limit / 1e9:.0f} GF/s", granted)

    return measure


def _small(training: bool) -> Target:
    cases = tuple(
        Case(shape, mode) for shape in SMALL for mode in MODES if mode.training == training
    )
    word = "train" if training else "infer"
    return Target(
        f"small-{word}",
        f"{SMALL[0]} and {SMALL[1]}, every mode of {word}: geometric mean, torch / ours",
        1.5 if training else 1.3,
        mean_of(cases),
        grid=cases,
        quick=True,
    )


def _share_target(name: str, shape: Shape, bound: float, mode: Mode = TRAIN) -> Target:
    case = Case(shape, mode)
    return Target(
        name,
        f"train at {shape}, D = {shape.head_dim}: share of the FMA limit",
        bound,
        _share(case),
        form="{:.1%}",
        quick=case in QUICK,
    )


TARGETS = (
    Target(
        "grid-mean",
        "the grid: geometric mean, torch / ours",
        1.8,
        _grid_mean,
        grid=GRID,
        quick=True,
    ),
    Target(
        "grid-worst", "the grid: worst cell, torch / ours", 1.0, worst_of, grid=GRID, quick=True
    ),
    _small(training=False),
    _small(training=True),
    *(_share_target(f"share-{shape.length}", shape, 0.85) for shape in LONG),
    _share_target("share-d32", NARROW_HEADS, 0.75),
)
