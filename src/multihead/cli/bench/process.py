"""Starts the process that measures, in an environment that is fair to all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

# a BLAS told to take another core's kernels would make the comparison with NumPy unfair
REMOVED = ("OPENBLAS_CORETYPE",)
# how each is told its number of threads before it starts
THREADS = (
    "MULTIHEAD_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NPROC",  # XLA's
)


class BenchError(RuntimeError):
    """The process that measures failed; the message is its last words."""


def environment(threads: int) -> dict[str, str]:
    """Return the environment of the process.

    Examples
    --------
    >>> found = environment(3)
    >>> found["OPENBLAS_NUM_THREADS"], "OPENBLAS_CORETYPE" in found
    ('3', False)
    """
    kept = {name: value for name, value in os.environ.items() if name not in REMOVED}
    return kept | dict.fromkeys(THREADS, str(threads))


def measure(task: dict[str, Any], tell: Callable[[float], None]) -> list[dict[str, Any]]:
    """Run a task of `worker.work` and return its cells.

    Parameters
    ----------
    task : dict
    tell : callable
        Is told what share is done.

    Raises
    ------
    BenchError
        If the process fails.
    """
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "multihead.cli.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment(task["threads"]),
        )
        with process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(task))
                process.stdin.close()
                for line in process.stdout:
                    found = json.loads(line)
                    if "cell" in found:
                        cells.append(found["cell"])
                    else:
                        tell(found["done"])
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            said.seek(0)
            last = said.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise BenchError(f"the measuring process ended with {process.returncode}: {last[0]}")
    return cells
