"""Measure cells one after another: check the contenders against each other, then time them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from benchmarks.cases import Case
from benchmarks.contenders import DTYPES, EINSUM, OURS, TORCH, Step, enter
from benchmarks.measure import DisagreementError, Plan, Timing, alternate, compare
from benchmarks.problem import Problem

TOLERANCE = 1e-3
# of results that were rounded, and of PyTorch's, rounded several times on the way
TOLERANCES = {"float32": TOLERANCE, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Cell:
    """What was measured for one case.

    Attributes
    ----------
    case : Case
        What ran.
    limit : Timing
        The machine's FMA limit in each round, flop/s.
    timings : dict of str to Timing
        By contender.
    absent : dict of str to str
        Contenders that did not run, and why.
    granted : float
        The share of the processors' time that we got meanwhile.
    """

    case: Case
    limit: Timing
    timings: dict[str, Timing]
    absent: dict[str, str] = field(default_factory=dict)
    granted: float = 1.0

    @property
    def ours(self) -> float:
        """Seconds a call."""
        return self.timings[OURS].median

    @property
    def share(self) -> float:
        """Our share of the FMA limit."""
        return self.case.flops() / self.ours / self.limit.median

    def seconds(self, name: str) -> float | None:
        """Seconds a call of a contender; None if it did not run."""
        return self.timings[name].median if name in self.timings else None

    @property
    def ratio(self) -> float | None:
        """PyTorch's time over ours; None without PyTorch."""
        theirs = self.seconds(TORCH)
        return None if theirs is None else theirs / self.ours


def check(
    steps: Mapping[str, Step], what: object, exact: bool = True, tolerance: float = TOLERANCE
) -> None:
    """Compare what every contender did last with ours.

    Parameters
    ----------
    steps : mapping of str to Step
        The contenders.
    what : object
        What they worked on, for the message.
    exact : bool
        Whether they compute the same; with dropout they do not.
    tolerance : float
        Largest difference allowed, relative to the largest entry.

    Raises
    ------
    DisagreementError
        If ours are not finite, or differ by more.
    """
    results = {name: step.results() for name, step in steps.items()}
    ours = results.pop(OURS)
    for name, values in ours.items():
        if not np.isfinite(values).all():
            raise DisagreementError(f"{what}: {OURS} has values that are not finite in {name}")
    for name, theirs in results.items():
        if not exact:
            continue
        try:
            compare(ours, theirs, tolerance)
        except DisagreementError as error:
            raise DisagreementError(f"{what}: {OURS} against {name}: {error}") from None


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure_case(
    case: Case, face: str, limit: Callable[[], float], plan: Plan, peers: bool = True
) -> Cell:
    """Run one cell of the grid.

    Parameters
    ----------
    case : Case
        What to run.
    face : str
        Which face of ours.
    limit : callable
        Measures the FMA limit, flop/s.
    plan : Plan
        How long.
    peers : bool
        Whether the others run too, or ours alone.

    Returns
    -------
    Cell
        All times.

    Raises
    ------
    DisagreementError
        If ours and PyTorch's or einsum's results differ by more than the dtype's tolerance.
    """
    dtype = DTYPES[face]
    makers, absent = enter(Problem.of(case, dtype=dtype), face, plan.compiling)
    if not peers:
        makers, absent = {OURS: makers[OURS]}, {}
    steps = {name: make() for name, make in makers.items()}
    first = {name: _seconds(step) for name, step in steps.items()}
    judges = {name: step for name, step in steps.items() if name in (OURS, TORCH, EINSUM)}
    check(judges, case, exact=not case.mode.dropout, tolerance=TOLERANCES[dtype])
    for name in steps.keys() - judges.keys():
        try:
            check({OURS: steps[OURS], name: steps[name]}, case, tolerance=TOLERANCES[dtype])
        except DisagreementError as error:
            absent[name] = f"wrong: {error}"
            del steps[name]
    # einsum is there for comparison only: it gets fewer turns than the two that race
    racing = {name: step for name, step in steps.items() if name != EINSUM}
    seconds, limits = alternate(racing, limit, plan)
    if EINSUM in steps:
        brief = Plan(rounds=plan.fewest, fewest=1, budget=plan.budget / 4, block=plan.block)
        if first[EINSUM] > brief.budget:
            seconds[EINSUM] = [first[EINSUM]]
        else:
            seconds |= alternate({EINSUM: steps[EINSUM]}, limit, brief)[0]
    return Cell(
        case=case,
        limit=Timing(tuple(limits)),
        timings={name: Timing(tuple(times)) for name, times in seconds.items()},
        absent=absent,
    )
