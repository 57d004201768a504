"""The benchmark: our layer against PyTorch's and plain NumPy, in one process.

``python -m multihead bench`` runs it; `run` is the same for a program.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from multihead import _native
from multihead.bench import report
from multihead.bench.bars import bars
from multihead.bench.cases import GRID, QUICK, Case
from multihead.bench.machine import Limit, describe, set_threads
from multihead.bench.measure import FULL, Plan
from multihead.bench.measure import QUICK as QUICK_PLAN
from multihead.bench.suite import Cell, measure_case

__all__ = ["run"]


def run(
    *,
    face: str = "numpy",
    threads: int | None = None,
    quick: bool = False,
    json_file: Path | None = None,
    cases: Sequence[Case] | None = None,
    plan: Plan | None = None,
) -> bool:
    """Measure the grid and print the table, the means and the bars.

    Parameters
    ----------
    face : {"numpy"}
        Which face of ours runs.
    threads : int, optional
        Threads for every contender; default: what `multihead.get_num_threads` says.
    quick : bool
        A part of the grid, in less than a minute.
    json_file : pathlib.Path, optional
        Where to write all that was measured.
    cases, plan : optional
        Other cases and durations than those that ``quick`` chooses.

    Returns
    -------
    bool
        False if a bar was missed.

    Raises
    ------
    multihead.bench.measure.DisagreementError
        If the contenders' results differ.
    """
    threads = _native.get_num_threads() if threads is None else threads
    cases = cases or (QUICK if quick else GRID)
    plan = plan or (QUICK_PLAN if quick else FULL)
    set_threads(threads)
    machine = describe(threads)
    print(report.opening(machine, len(cases)), flush=True)
    cells: list[Cell] = []
    limit = Limit(threads)
    start = time.monotonic()
    for done, case in enumerate(cases):
        if time.monotonic() - start > plan.whole:
            print(f"out of time: the last {len(cases) - done} cells were not run")
            break
        cells.append(measure_case(case, face, limit, plan))
        print(report.row(cells[-1]), flush=True)
    print(report.closing(cells, len(GRID), limit.granted))
    if json_file is not None:
        settings = {
            "face": face,
            "quick": quick,
            "rounds": plan.rounds,
            "fewest_rounds": plan.fewest,
            "seconds_for_a_cell": plan.budget,
            "seconds_for_a_block": plan.block,
        }
        found = report.document(cells, machine, settings, limit.granted)
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    return all(bar.verdict != "missed" for bar in bars(cells))
