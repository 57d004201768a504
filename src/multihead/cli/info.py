"""``multihead info``: what is installed, and what was found here."""

from __future__ import annotations

import argparse
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

import multihead
from multihead.cli import machine
from multihead.cli.console import Console

DESCRIPTION = (
    "Say which version is installed, what it computes with, what it found of the machine, and "
    "which extras are there."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command; it has none of its own."""


def run(options: argparse.Namespace, console: Console) -> int:
    """Write it."""
    config, found, extras = multihead.show_config("dicts"), machine.description(), machine.extras()
    document: dict[str, Any] = config | {
        "location": str(Path(multihead.__file__).parent),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": found,
        "extras": extras,
    }
    if not console.document(options, document):
        return 0
    console.line((f"multihead {config['version']}", "bold"))
    console.pairs(
        {
            "computes with": config["isa"],
            "available": ", ".join(config["available_isas"]),
            "threads": f"{config['threads']}, {_reason(found)}",
            "Python": document["python"],
            "NumPy": document["numpy"],
            "lies in": document["location"],
        }
    )
    limit = found["cgroup_limit"]
    console.heading("machine")
    console.pairs(
        {
            "processor": found["processor"],
            "CPUs": f"{found['cpus']}, of which this process may use {found['affinity']}",
            "cgroup": "no limit" if limit is None else f"the time of {limit:g} CPUs",
            "system": found["system"],
        }
    )
    console.heading("extras")
    console.table([_extra(name, packages) for name, packages in extras.items()])
    return 0


def _reason(found: dict[str, Any]) -> str:
    ours, share = (
        os.environ.get(name, "") for name in ("MULTIHEAD_NUM_THREADS", "OMP_NUM_THREADS")
    )
    if ours:
        return f"with MULTIHEAD_NUM_THREADS={ours}"
    if re.match(r"\s*\+?0*[1-9]", share):  # else the engine ignores it, too
        return f"with OMP_NUM_THREADS={share}"
    limit = found["cgroup_limit"]
    limited = limit is not None and limit < found["affinity"]
    return "as the cgroup allows" if limited else "one for each CPU"


def _extra(name: str, packages: dict[str, str | None]) -> list[str | tuple[str, str]]:
    if None in packages.values():
        return [name, ("missing", "yellow"), f'pip install "multihead[{name}]"']
    versions = ", ".join(f"{package} {version}" for package, version in packages.items())
    return [name, ("there", "green"), versions]
