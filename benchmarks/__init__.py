"""The benchmark: our faces against PyTorch and plain NumPy, and against their targets.

``python -m benchmarks`` runs it from a checkout (``make bench``); `run` is the same for a program.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import native, report
from benchmarks.cases import GRID, QUICK, Case
from benchmarks.contenders import DTYPES
from benchmarks.machine import describe, set_threads
from benchmarks.measure import FULL, Plan
from benchmarks.measure import QUICK as QUICK_PLAN
from benchmarks.suite import measure_case
from benchmarks.targets import FACES, choose
from benchmarks.targets.target import QUIET, Reached, Result, Run, Target, reach
from multihead import _native

__all__ = ["run"]

# the rest is for the targets that are not read off the grid
GRID_SHARE_OF_TIME = 0.5


def run(
    *,
    face: str = "numpy",
    threads: int | None = None,
    quick: bool = False,
    targets: Sequence[str] | None = None,
    json_file: Path | None = None,
    cases: Sequence[Case] | None = None,
    plan: Plan | None = None,
) -> bool:
    """Measure the grid and a face's targets, and print the table and what was reached.

    Parameters
    ----------
    face : {"numpy", "torch", "half", "modern", "jax"}
        Which face of ours runs: ``"half"`` is NumPy's in half precision, ``"modern"`` its options
        beyond torch's, ``"jax"`` attention in JAX. The grid is for the first two of NumPy's.
    threads : int, optional
        Threads for every contender; default: what `multihead.get_num_threads` says.
    quick : bool
        A part of the grid and of the targets, in less than a minute.
    targets : sequence of str, optional
        Beginnings of names: measure these targets, and of the grid what they are read off.
    json_file : pathlib.Path, optional
        Where to write all that was measured.
    cases, plan : optional
        Other cells and durations than those that ``quick`` and ``targets`` choose.

    Returns
    -------
    bool
        False if a target was missed, or the machine was busy.

    Raises
    ------
    ValueError
        If no target begins with one of ``targets``.
    benchmarks.measure.DisagreementError
        If the contenders' results differ.
    benchmarks.native.CompilerError
        If there is no C++ compiler for what measures the FMA limit.
    """
    chosen = _chosen(face, targets, quick)
    whole = targets is None and face == "numpy"
    cases = _cells(chosen, whole, quick) if cases is None else cases
    plan = plan or (QUICK_PLAN if quick else FULL)
    threads = _native.get_num_threads() if threads is None else threads
    set_threads(threads)
    native.prepare(_native.isa())
    machine = describe(threads)
    this = Run(face, threads, plan, quick)
    start = time.monotonic()
    print(report.opening(machine, len(cases), DTYPES.get(face, "float32")), flush=True)
    this.limit()
    _measure_grid(this, cases, start)
    results = _measure_targets(this, chosen, start)
    cells = list(this.cells.values())
    granted = this.limit.granted
    results = [_held(each, granted) for each in results]
    print(report.summary(results, granted))
    if json_file is not None:
        settings = {
            "face": face,
            "quick": quick,
            "rounds": plan.rounds,
            "fewest_rounds": plan.fewest,
            "seconds_for_a_cell": plan.budget,
            "seconds_for_a_block": plan.block,
        }
        found = report.document(cells, results, machine, settings, granted)
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    verdicts = {result.verdict for result in results}
    return granted >= QUIET and not verdicts & {"missed", "busy"}


def _chosen(face: str, names: Sequence[str] | None, quick: bool) -> list[Target]:
    if names is not None:
        return choose(names, face)
    return [target for target in FACES[face] if target.quick or not quick]


def _cells(chosen: Sequence[Target], whole: bool, quick: bool) -> list[Case]:
    """Those of the grid's cells that are to be measured, in its order."""
    cases = QUICK if quick else GRID
    needed = {case for target in chosen for case in target.grid}
    return [case for case in cases if whole or case in needed]


def _held(result: Result, granted: float) -> Result:
    """Let a busy run meet nothing, not even in its quiet moments."""
    return result if granted >= QUIET else replace(result, granted=min(result.granted, granted))


def _measure_grid(this: Run, cases: Sequence[Case], start: float) -> None:
    if not cases:
        return
    for done, case in enumerate(cases):
        if time.monotonic() - start > this.plan.whole * GRID_SHARE_OF_TIME:
            print(f"out of time: the last {len(cases) - done} cells were not run")
            break
        mark = this.limit.mark()
        cell = measure_case(case, this.face, this.limit, this.plan)
        this.cells[case] = replace(cell, granted=this.limit.granted_since(mark))
        print(report.row(this.cells[case]), flush=True)
    print(report.closing(list(this.cells.values()), len(GRID)))


def _measure_targets(this: Run, chosen: Sequence[Target], start: float) -> list[Result]:
    results = []
    column = max((len(target.name) + 1 for target in chosen), default=0)
    print()
    for target in chosen:
        if not target.grid and time.monotonic() - start > this.plan.whole:
            results.append(Result(target, Reached(None, "out of time")))
        else:
            reached = reach(target, this)
            # a target that times nothing has not asked how busy the machine is
            this.limit()
            results.append(_held(reached, this.limit.granted))
        print(report.outcome(results[-1], column), flush=True)
    return results
