"""The command line: ``python -m benchmarks``, which is ``make bench``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import benchmarks
from benchmarks.machine import BLAS_OVERRIDES, installed
from benchmarks.measure import FULL, SHORTER
from benchmarks.native import CompilerError
from benchmarks.targets import FACES, choose


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; default: those of this process.

    Returns
    -------
    int
        The exit status: 0, or 1 if ``--check`` missed a target or the machine was busy.

    Examples
    --------
    >>> main(["--threads", "0"])
    Traceback (most recent call last):
        ...
    SystemExit: 2
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.face == "half" and installed("ml_dtypes") is None:
        parser.error("argument --face: half needs ml_dtypes; pip install '.[bench]'")
    if options.targets is not None:
        try:
            choose(options.targets, options.face)
        except ValueError as error:
            parser.error(f"argument --targets: {error}")
    plan = None if options.budget is None else replace(SHORTER, budget=options.budget)
    if arguments is None:
        _drop_blas_overrides()
    try:
        passed = benchmarks.run(
            face=options.face,
            threads=options.threads,
            quick=options.quick,
            targets=options.targets,
            json_file=options.json,
            plan=plan,
        )
    except CompilerError as error:
        parser.error(str(error))
    return 0 if passed or not options.check else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the layer against PyTorch and NumPy."
    )
    parser.add_argument(
        "--json", type=_writable, metavar="FILE", help="write all that was measured"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="a sample, under a minute")
    length.add_argument(
        "--budget",
        type=_seconds,
        metavar="S",
        help=f"seconds for a cell or a target's race, and two rounds at least; default: "
        f"{FULL.budget:g} and {FULL.fewest} rounds",
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="NAME",
        help="measure only the targets whose names begin so; a wrong name lists them",
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads for everyone")
    parser.add_argument("--face", choices=[*FACES], default="numpy", help="which of ours")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 if a target is missed or the machine is busy",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return seconds


def _writable(text: str) -> Path:
    path = Path(text)
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text}: {error.strerror}") from None
    return path


def _drop_blas_overrides() -> None:
    """Start this process anew without them: OpenBLAS has read them when NumPy was imported."""
    if any(name in os.environ for name in BLAS_OVERRIDES):
        kept = {name: value for name, value in os.environ.items() if name not in BLAS_OVERRIDES}
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)


if __name__ == "__main__":
    raise SystemExit(main())
