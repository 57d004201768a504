"""Targets of half precision against others, read off the grid in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean

from benchmarks.cases import GRID
from benchmarks.contenders import OURS
from benchmarks.machine import instructions
from benchmarks.suite import Cell
from benchmarks.targets.grid import mean_of, worst_of
from benchmarks.targets.half import AMX
from benchmarks.targets.target import Reached, Run, Target

# all that most peers have
RACED = tuple(case for case in GRID if not (case.mode.training or case.mode.weights))


def best_peer(cell: Cell) -> tuple[float, str] | None:
    """Return the time of the fastest other over ours, and its name; None if we ran alone."""
    others = [
        (timing.median / cell.ours, name) for name, timing in cell.timings.items() if name != OURS
    ]
    return min(others, default=None)


def _cells(run: Run) -> tuple[list[tuple[float, str, Cell]], list[str]]:
    """Cells in which a peer ran, lowest ratio first, and notes on what is missing."""
    cells = [run.cells[case] for case in RACED if case in run.cells]
    found = sorted(
        ((*best, cell) for cell in cells if (best := best_peer(cell)) is not None),
        key=lambda each: each[0],
    )
    notes = [f"{len(found)} of {len(RACED)} cells"] if len(found) < len(RACED) else []
    missing = dict.fromkeys(f"{name} {why}" for cell in cells for name, why in cell.absent.items())
    return found, [*notes, *missing]


def _mean(run: Run) -> Reached:
    found, notes = _cells(run)
    if not found:
        return Reached(None, "; ".join(notes))
    ahead = [name for _, name, _ in found]
    most = ", ".join(f"{name} is the best of {ahead.count(name)}" for name in dict.fromkeys(ahead))
    mean = geometric_mean(ratio for ratio, _, _ in found)
    return Reached(mean, "; ".join([most, *notes]), fmean(cell.granted for *_, cell in found))


def _worst(run: Run) -> Reached:
    found, notes = _cells(run)
    if not found:
        return Reached(None, "; ".join(notes))
    ratio, name, cell = found[0]
    return Reached(ratio, "; ".join([f"{name} at {cell.case}", *notes]), cell.granted)


def _where(amx: bool, measure: Callable[[Run], Reached]) -> Callable[[Run], Reached]:
    """Measure on processors with AMX alone, or on those without: PyTorch is another one there."""

    def measured(run: Run) -> Reached:
        if (AMX in instructions()) != amx:
            row = "half-mean and half-worst" if amx else "the rows of AMX"
            return Reached(None, f"this CPU has {'no ' if amx else ''}{AMX}: {row} hold")
        return measure(run)

    return measured


def _module(name: str, what: str, bound: float, amx: bool, of: Callable[[Run], Reached]) -> Target:
    where = "with AMX" if amx else "without AMX"
    return Target(
        name,
        f"the grid in bfloat16, on a CPU {where}: {what}, torch's module / ours",
        bound,
        _where(amx, of),
        grid=GRID,
        quick=True,
    )


def _best(name: str, what: str, bound: float, measure: Callable[[Run], Reached]) -> Target:
    return Target(
        name,
        f"inference without weights in bfloat16: {what}, best peer of the cell / ours",
        bound,
        measure,
        grid=RACED,
        quick=True,
    )


MEAN, WORST = "geometric mean", "worst cell"
TARGETS: Sequence[Target] = (
    _module("half-mean", MEAN, 1.6, False, mean_of(GRID)),
    _module("half-worst", WORST, 1.0, False, worst_of),
    _module("half-amx-mean", MEAN, 1.2, True, mean_of(GRID)),
    _module("half-amx-worst", WORST, 0.95, True, worst_of),
    _best("half-peers-mean", MEAN, 1.0, _mean),
    _best("half-peers-worst", WORST, 0.9, _worst),
)
