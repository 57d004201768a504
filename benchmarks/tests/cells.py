"""What the benchmark's tests share: a tiny shape, a short plan, cells and targets made up."""

from __future__ import annotations

from benchmarks.cases import Case, Shape
from benchmarks.measure import Plan, Timing
from benchmarks.suite import Cell
from benchmarks.targets.target import Reached, Target

TINY = Shape(2, 16, 32, 4)
BRIEF = Plan(rounds=2, fewest=1, budget=0.01, block=0.001)


def cell(case: Case, ours: float, torch: float | None, limit: float = 1e11) -> Cell:
    timings = {"multihead": Timing((ours,))}
    if torch is not None:
        timings["torch"] = Timing((torch,))
    return Cell(case, Timing((limit,)), timings)


def target(
    name: str = "name",
    bound: float | None = 1.0,
    reached: float | None = 2.0,
    at_most: bool = False,
) -> Target:
    return Target(name, "what it is", bound, lambda run: Reached(reached), at_most=at_most)
