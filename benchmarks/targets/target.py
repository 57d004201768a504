"""What a target is, and the run in which targets are reached or missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from importlib.util import find_spec
from statistics import median
from typing import Any

from benchmarks.cases import Case
from benchmarks.contenders import FACES, Step
from benchmarks.machine import Limit
from benchmarks.measure import Plan, Timing, alternate
from benchmarks.problem import Problem
from benchmarks.suite import Cell, measure_case

# with less than this share of the processors' time, a figure says nothing
QUIET = 0.9


class Run:
    """One run of the benchmark: its settings, and the cells measured so far.

    Attributes
    ----------
    face : str
        Which face of ours runs.
    threads : int
        Threads of every contender.
    plan : Plan
        How long each cell, or one race of a target, may take.
    limit : Limit
        The machine's FMA limit.
    quick : bool
        Whether this is a sample only.
    cells : dict of Case to Cell
        The part of the grid that was measured.
    """

    def __init__(self, face: str, threads: int, plan: Plan, quick: bool = False) -> None:
        self.face, self.threads, self.plan, self.quick = face, threads, plan, quick
        self.limit = Limit(threads)
        self.cells: dict[Case, Cell] = {}

    def step(self, case: Case, dtype: str = "float32") -> Step:
        """Make our step of a case."""
        return FACES[self.face](Problem.of(case, dtype=dtype))

    def cell(self, case: Case) -> Cell:
        """Return the grid's cell, or measure ours alone where the grid has not."""
        if case in self.cells:
            return self.cells[case]
        return measure_case(case, self.face, self.limit, self.plan, peers=False)

    def race(
        self, steps: Mapping[str, Callable[[], None]], parts: int = 1
    ) -> dict[str, list[float]]:
        """Warm up and time steps in alternating blocks.

        Parameters
        ----------
        steps : mapping of str to callable
            Who races.
        parts : int
            How many races of the target share the budget.

        Returns
        -------
        dict of str to list of float
            Seconds a call; entries at one index are from one round.
        """
        for step in steps.values():
            step()
        plan = replace(self.plan, budget=self.plan.budget / parts)
        return alternate(steps, self.limit, plan)[0]

    def ratio(self, above: Callable[[], None], below: Callable[[], None], parts: int = 1) -> float:
        """Return the time of one step over that of another, the median over the rounds."""
        seconds = self.race({"above": above, "below": below}, parts)
        return median(paired(seconds["above"], seconds["below"]))


def paired(above: list[float], below: list[float]) -> list[float]:
    """Return the ratio in each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


@dataclass(frozen=True)
class Reached:
    """What was measured for a target; a value of None was not, and the note says why.

    Attributes
    ----------
    value : float or None
    note : str
    granted : float
        The share of the processors' time that another process of ours got.
    seconds : dict of str to Timing
        The times that it is taken from, if they are to be kept.
    """

    value: float | None
    note: str = ""
    granted: float = 1.0
    seconds: dict[str, Timing] = field(default_factory=dict)


def with_torch(measure: Callable[[Run], Reached]) -> Callable[[Run], Reached]:
    """Make what measures a target say so where PyTorch is not installed."""

    @wraps(measure)
    def measured(run: Run) -> Reached:
        if find_spec("torch") is None:
            return Reached(None, "torch is not installed")
        return measure(run)

    return measured


@dataclass(frozen=True)
class Target:
    """A figure that the library is held to.

    Attributes
    ----------
    name : str
        Its name on the command line.
    what : str
        What the figure is.
    bound : float or None
        The figure wanted, or None for one that is only told.
    measure : callable
        Measures it, in a `Run`.
    at_most : bool
        Whether less is better.
    form : str
        How to write the figure.
    grid : tuple of Case
        Cells of the grid that it is taken from, torch's times included.
    quick : bool
        Whether it is in the sample of a quick run.
    """

    name: str
    what: str
    bound: float | None
    measure: Callable[[Run], Reached]
    at_most: bool = False
    form: str = "{:.2f}x"
    grid: tuple[Case, ...] = ()
    quick: bool = False


@dataclass(frozen=True)
class Result:
    """A target and what was reached.

    Attributes
    ----------
    target : Target
    reached : Reached
    granted : float
        The share of the processors' time that we got meanwhile.
    """

    target: Target
    reached: Reached
    granted: float = 1.0

    @property
    def verdict(self) -> str:
        """Say how it went.

        ``"met"`` or ``"missed"``; ``"busy"`` where the machine was too busy to tell; ``"told"``
        without a bound; or ``"not measured"``.
        """
        value, bound = self.reached.value, self.target.bound
        if value is None:
            return "not measured"
        if bound is None:
            return "told"
        if self.granted < QUIET:
            return "busy"
        # written so that NaN misses
        return "met" if (value <= bound if self.target.at_most else value >= bound) else "missed"

    def document(self) -> dict[str, Any]:
        """Return all of it, ready for ``json.dump``."""
        found: dict[str, Any] = {
            "name": self.target.name,
            "what": self.target.what,
            "bound": self.target.bound,
            "at_most": self.target.at_most,
            "value": self.reached.value,
            "note": self.reached.note,
            "verdict": self.verdict,
            "granted_processor_time": self.granted,
        }
        if self.reached.seconds:
            found["seconds"] = {
                name: timing.document() for name, timing in self.reached.seconds.items()
            }
        return found


def reach(target: Target, run: Run) -> Result:
    """Measure one target."""
    mark = run.limit.mark()
    reached = target.measure(run)
    return Result(target, reached, min(reached.granted, run.limit.granted_since(mark)))
