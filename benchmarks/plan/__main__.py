"""The command line: ``python -m benchmarks.plan``, which is ``make plan-check``."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import tables
from benchmarks.machine import describe
from benchmarks.plan import start
from benchmarks.plan.cells import PLACES, QUICK, Cell, Place
from benchmarks.plan.judge import BOUNDS, judged, outside
from benchmarks.plan.links import missing

RESULT = tables.RESULTS / "plan.json"
STEPS, MOST = 5, 9  # on a steady machine, and in all, of each attempt
ATTEMPTS, LEAST = 3, 3  # until there are so many steps on a steady machine
Key: TypeAlias = tuple[str, int, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, tell what is predicted otherwise, and write the page.

    Returns
    -------
    int
        The exit status: 1 if anything measured is outside `judge.BOUNDS` of its prediction.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description="Hold predictions of multihead plan against runs, over loopback and, as root "
        "on Linux, over shaped links between network namespaces.",
    )
    parser.add_argument("--quick", action="store_true", help="two runs; writes no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there instead")
    parser.add_argument(
        "--again",
        action="store_true",
        help="keep what the file has of runs on a steady machine, and measure the others",
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _ended)  # what has been made is removed then too
    lacking = missing()
    if lacking is not None:
        print(f"without shaped links: {lacking}", flush=True)
    turns = (1, 1) if options.quick else (STEPS, MOST)
    file = options.json or (None if options.quick or lacking else RESULT)
    known = _steady(file) if options.again and file is not None and file.exists() else {}
    rows = []
    for place in QUICK if options.quick else PLACES:
        if place.rate is None or lacking is None:
            rows += _rows(place, turns, 1 if options.quick else ATTEMPTS, known)
        if file is not None:
            file.write_text(json.dumps({"machine": describe(1), "rows": rows}, indent=1) + "\n")
    if file == RESULT:
        tables.main([])
    wrong = [(row, outside(row)) for row in rows if outside(row)]
    for row, names in wrong:
        print(
            f"outside {BOUNDS[0]} to {BOUNDS[1]}: {', '.join(names)} of {row['links']}, "
            f"{row['ranks']} ranks, {row['cell']}"
        )
    return int(bool(wrong))


def _rows(
    place: Place, turns: tuple[int, int], attempts: int, known: dict[Key, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run a place's cells; those in which too few steps found the machine steady once more."""
    rows = {cell: known.get((str(place), place.ranks, str(cell))) for cell in place.cells}
    found: dict[Cell, dict[str, Any]] = {}
    for _ in range(attempts):
        left = tuple(cell for cell, row in rows.items() if row is None or row["steady"] < LEAST)
        if not left:
            break
        for cell, each in zip(left, start.run(place._replace(cells=left), *turns), strict=True):
            if cell in found:
                each["turns"] += found[cell]["turns"]
            found[cell] = each
            row = rows[cell] = judged(place, cell, each)
            _tell(row)
    return [row for row in rows.values() if row is not None]


def _steady(file: Path) -> dict[Key, dict[str, Any]]:
    """Return the rows of an earlier run for which the machine was steady."""
    rows = json.loads(file.read_text())["rows"]
    return {
        (row["links"], row["ranks"], row["cell"]): row for row in rows if row["steady"] >= LEAST
    }


def _ended(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _tell(row: dict[str, Any]) -> None:
    ratios = ", ".join(f"{name} {x:.2f}" for name, x in row["ratios"].items())
    predicted, measured = (row[of]["seconds"] for of in ("predicted", "measured"))
    print(
        f"{row['links']}, {row['ranks']} ranks, {row['cell']}: predicted {predicted:.3f} s, "
        f"measured {measured:.3f} s; measured over predicted: {ratios} "
        f"({row['steady']} of {row['steps']} steps steady)",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
