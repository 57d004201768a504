"""The command line: ``python -m benchmarks.accuracy``, which is ``make accuracy``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.accuracy.cases import DRAWS, DTYPES, QUICK_DRAWS
from benchmarks.accuracy.measure import measure
from benchmarks.accuracy.verdict import MOST, Pair, means, pairs

RESULT = tables.RESULTS / "accuracy.json"
HALF = ("float16", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell where ours is larger than PyTorch's, and write the page.

    Returns
    -------
    int
        The exit status: 1 if ours is larger anywhere in the dtypes that are held to it, more than
        `verdict.MOST` times as large anywhere, or larger in the mean of a dtype and a function.
    """
    options = _parser().parse_args(arguments)
    draws = QUICK_DRAWS if options.quick else DRAWS
    found = measure(draws, _tell)
    file = options.json or (None if options.quick else RESULT)
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")
    if file == RESULT:
        tables.main([])
    return _judge(pairs(found), options.hold)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Measure errors against float64, ours beside PyTorch's.",
    )
    parser.add_argument("--quick", action="store_true", help="short lengths; writes no page")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help=f"write the figures there, not to {RESULT.name}"
    )
    parser.add_argument(
        "--hold",
        nargs="+",
        choices=DTYPES,
        default=HALF,
        help="the dtypes in which a larger error is a failure; default: those of half precision",
    )
    return parser


def _tell(case: dict[str, Any]) -> None:
    told = pairs({"cases": [case]})
    larger = sum(pair.larger for pair in told)
    worst = max(pair.ratio for pair in told)
    name = f"{case['function']:<9}{case['dtype']:<9} L = {case['length']:<5}"
    note = f"  LARGER in {larger}" if larger else ""
    print(f"{name} logits {case['logits']:<4} ours / torch at most {worst:.2f}{note}", flush=True)


def _judge(told: Sequence[Pair], held: Sequence[str]) -> int:
    larger = [pair for pair in told if pair.larger]
    for pair in larger:
        print(f"larger: {pair}" + ("" if pair.dtype in held else " (not held)"))
    print(f"ours is larger in {len(larger)} of {len(told)} figures")
    for pair in told:
        if pair.too_large:
            print(f"over {MOST} times: {pair}")
    above = {of: mean for of, mean in means(told).items() if mean > 1}
    for of, mean in above.items():
        print(f"larger in the mean, {mean:.2f} times: {' '.join(of)}")
    return int(
        bool(above)
        or any(pair.too_large for pair in told)
        or any(pair.dtype in held for pair in larger)
    )


if __name__ == "__main__":
    raise SystemExit(main())
