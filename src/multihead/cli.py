"""The command line: ``python -m multihead bench`` and ``python -m multihead config``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from multihead.threads import show_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; default: those of this process.

    Returns
    -------
    int
        The exit status: 0, or 1 if ``bench --check`` missed a target.

    Examples
    --------
    >>> main(["bench", "--threads", "0"])
    Traceback (most recent call last):
        ...
    SystemExit: 2
    """
    options = _parser().parse_args(arguments)
    if options.command == "config":
        _config(options.cflags, options.libs)
        return 0
    if options.targets is not None:
        _known(options)
    if arguments is None:
        _drop_blas_overrides()
    from multihead.bench import run

    passed = run(
        face=options.face,
        threads=options.threads,
        quick=options.quick,
        targets=options.targets,
        json_file=options.json,
    )
    return 0 if passed or not options.check else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m multihead", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    config = commands.add_parser(
        "config",
        help="print version, instruction sets and threads, or a C compiler's flags",
        description="Say what is installed; with an option, only what a C compiler needs to know.",
    )
    config.add_argument("--cflags", action="store_true", help="to include <multihead/bnns.h>")
    config.add_argument("--libs", action="store_true", help="to link with the library")

    bench = commands.add_parser(
        "bench", help="measure against PyTorch and NumPy", description="Measure the layer."
    )
    bench.add_argument("--json", type=_writable, metavar="FILE", help="write all that was measured")
    bench.add_argument("--quick", action="store_true", help="a sample, under a minute")
    bench.add_argument(
        "--targets",
        nargs="+",
        metavar="NAME",
        help="measure only the targets whose names begin so; a wrong name lists them",
    )
    bench.add_argument("--threads", type=_positive, metavar="N", help="threads for everyone")
    bench.add_argument("--face", choices=["numpy", "torch"], default="numpy", help="which of ours")
    bench.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    bench.set_defaults(refuse=bench.error)
    return parser


def _config(cflags: bool, libs: bool) -> None:
    if not (cflags or libs):
        show_config()
        return
    from multihead.bnns import library

    print(*[library.compile_flags()] * cflags, *library.link_flags() * libs)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return number


def _known(options: argparse.Namespace) -> None:
    """Refuse names that begin no target of the face."""
    from multihead.bench.targets import choose

    try:
        choose(options.targets, options.face)
    except ValueError as error:
        options.refuse(f"argument --targets: {error}")


def _writable(text: str) -> Path:
    path = Path(text)
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text}: {error.strerror}") from None
    return path


def _drop_blas_overrides() -> None:
    """Start this process anew without them: OpenBLAS has read them when NumPy was imported."""
    from multihead.bench.machine import BLAS_OVERRIDES

    if any(name in os.environ for name in BLAS_OVERRIDES):
        kept = {name: value for name, value in os.environ.items() if name not in BLAS_OVERRIDES}
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)
