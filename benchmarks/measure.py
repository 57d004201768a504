"""Timing that is fair on a shared machine: alternating blocks, medians."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.problem import Array


@dataclass(frozen=True)
class Plan:
    """How long to measure one cell.

    Attributes
    ----------
    rounds, fewest : int
        Rounds wanted, and how few will do when the budget runs out.
    budget : float
        Seconds for the rounds of one cell.
    block : float
        Seconds that each contender runs before the next one's turn, at least.
    whole : float
        Seconds after which no further cell or target is begun.
    compiling : bool
        Whether there is time for peers that compile.
    """

    rounds: int = 9
    fewest: int = 5
    budget: float = 12.0
    block: float = 0.05
    whole: float = math.inf
    compiling: bool = True


FULL = Plan()
# the longest cells take far more than their budget in five rounds
SHORTER = Plan(fewest=2)
QUICK = Plan(rounds=5, fewest=2, budget=0.6, whole=45.0, compiling=False)


class DisagreementError(RuntimeError):
    """Two contenders computed different results, so their times mean nothing."""


def compare(ours: Mapping[str, Array], theirs: Mapping[str, Array], tolerance: float) -> None:
    """Check that two contenders agree, array by array.

    Parameters
    ----------
    ours, theirs : mapping of str to numpy.ndarray
        Results by name; those that both have are compared.
    tolerance : float
        Largest difference allowed, relative to the largest entry.

    Raises
    ------
    DisagreementError
        For a different shape or a larger difference; names the array.

    Examples
    --------
    >>> compare({"out": np.ones(3)}, {"out": np.ones(3) + 1e-6}, 1e-3)
    >>> compare({"out": np.ones(3)}, {"out": np.zeros(3)}, 1e-3)
    Traceback (most recent call last):
        ...
    benchmarks.measure.DisagreementError: out: differs by 1 where the largest entry is 1
    """
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            raise DisagreementError(f"{name}: shape {a.shape} against {b.shape}")
        largest = max(float(np.abs(a).max()), float(np.abs(b).max()))
        difference = float(np.abs(a - b).max())
        # written so that NaN fails
        if not difference <= tolerance * largest:
            raise DisagreementError(
                f"{name}: differs by {difference:.3g} where the largest entry is {largest:.3g}"
            )


def _block(step: Callable[[], None], seconds: float, cheap: float) -> float:
    """Seconds for one call, the mean over a block."""
    start = time.perf_counter()
    step()
    if time.perf_counter() - start < cheap:
        # this call only brought the contender's threads and data back
        start = time.perf_counter()
        step()
    calls = 1
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        calls += 1
    return elapsed / calls


def alternate(
    steps: Mapping[str, Callable[[], None]], limit: Callable[[], float], plan: Plan
) -> tuple[dict[str, list[float]], list[float]]:
    """Time the contenders block by block, each round in the opposite order of the last.

    Parameters
    ----------
    steps : mapping of str to callable
        The contenders' calls, warmed up.
    limit : callable
        Measures the machine's limit (flop/s); called once a round.
    plan : Plan
        Rounds and block length.

    Returns
    -------
    seconds : dict of str to list of float
        Seconds a call, one entry a round.
    limits : list of float
        The limit in each round.
    """
    order = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    limits: list[float] = []
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    try:
        for done in range(plan.rounds):
            elapsed = time.perf_counter() - start
            # stop before the round that would end past the budget
            if done >= plan.fewest and elapsed * (done + 1) / done > plan.budget:
                break
            limits.append(limit())
            for name in order:
                seconds[name].append(_block(steps[name], plan.block, plan.block / 5))
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return seconds, limits


@dataclass(frozen=True)
class Timing:
    """Seconds a call in each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure that counts."""
        return median(self.rounds)

    def document(self) -> dict[str, Any]:
        """Return it, ready for ``json.dump``."""
        return {"median": self.median, "rounds": list(self.rounds)}
