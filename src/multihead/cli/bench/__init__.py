"""``multihead bench``: the layer, beside what else is installed."""

from __future__ import annotations

import argparse
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import multihead as mh
from multihead.cli import machine
from multihead.cli.arguments import count, new_file, seconds
from multihead.cli.bench import compare, process, report
from multihead.cli.bench.contenders import CONTENDERS, OURS
from multihead.cli.bench.problem import SHAPES, shape
from multihead.cli.console import Console, progress
from multihead.cli.elements import DTYPES

DESCRIPTION = (
    "Time the layer, self-attention forward and forward with backward, beside torch, NumPy, ONNX "
    "Runtime and JAX, where they are installed. All have the same numbers and threads and take "
    "turns; a measurement during which the machine was busy is called so."
)
SECONDS = 20.0
PACKAGES = {"torch": "torch", "NumPy": "numpy", "ONNX Runtime": "onnxruntime", "JAX": "jax"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        metavar="N,L,E,H",
        help="sequences, tokens, width and heads; may be given several times",
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=SECONDS,
        metavar="S",
        help=f"how long to measure in all, about; default {SECONDS:g}",
    )
    parser.add_argument("--threads", type=count, metavar="T", help="for everyone")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        metavar="DTYPE",
        help=f"{', '.join(DTYPES)}; default {DTYPES[0]}",
    )
    parser.add_argument(
        "--plot", type=_picture, metavar="FILE", help="draw a chart; .png or .svg, by matplotlib"
    )
    parser.add_argument(
        "--html", type=new_file, metavar="FILE", help="write a page with chart and table"
    )
    parser.add_argument(
        "--compare",
        type=compare.earlier,
        metavar="OLD.json",
        help="say what got slower since a run with --json",
    )


def _picture(text: str) -> str:
    if Path(text).suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png or .svg, got {text!r}")
    if machine.version_of("matplotlib") is None:
        message = 'needs matplotlib: pip install "multihead[plot]"'
        raise argparse.ArgumentTypeError(message)
    return new_file(text)


def run(options: argparse.Namespace, console: Console) -> int:
    """Measure, and write what was asked for."""
    threads = options.threads or mh.get_num_threads()
    task = {
        "shapes": options.shape or SHAPES,
        "dtype": options.dtype,
        "threads": threads,
        "seconds": options.seconds,
        "contenders": [contender.name for contender in CONTENDERS],
    }
    with progress("measuring", 1.0) as step:
        try:
            cells = process.measure(task, step)
        except process.BenchError as error:
            console.say(f"Bad: {error}", "bold red")
            return 1
    measured = {who for cell in cells for who in cell["times"]}
    document: dict[str, Any] = {
        "kind": compare.KIND,
        "version": mh.__version__,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine.description(),
        "python": platform.python_version(),
        "isa": mh.show_config("dicts")["isa"],
        "threads": threads,
        "dtype": options.dtype,
        "versions": {OURS: mh.__version__}
        | {who: machine.version_of(name) for who, name in PACKAGES.items() if who in measured},
        "cells": cells,
    }
    if options.compare is not None:
        document["compared"] = compare.compared(document, options.compare)
    if options.html is not None:
        from multihead.cli.bench.page import page

        Path(options.html).write_text(page(document), encoding="utf-8")
    if options.plot is not None:
        from multihead.cli.bench.picture import picture

        picture(document).savefig(options.plot)
    if console.document(options, document):
        report.write(console, document)
        if options.compare is not None:
            compare.write(console, document, options.compare)
    return 0
