"""Every environment variable that is read: the one table for `multihead config` and the docs."""

from __future__ import annotations

from typing import NamedTuple


class Variable(NamedTuple):
    """An environment variable: who reads it, and what it means."""

    name: str
    reader: str
    meaning: str


VARIABLES = (
    Variable(
        "MULTIHEAD_ISA",
        "engine",
        "The kernel set to compute with, one of those that `multihead info` lists as available; by "
        "default the fastest. Any other name is an ImportError, and ends a command.",
    ),
    Variable(
        "MULTIHEAD_NUM_THREADS",
        "engine",
        "How many threads the engine uses, from 1 to 1024; by default as many as there are CPUs "
        "that the process may use. Anything else is an ImportError, and ends a command.",
    ),
    Variable(
        "OMP_NUM_THREADS",
        "engine",
        "Where MULTIHEAD_NUM_THREADS is not set: how many threads at most. joblib and others tell "
        "their worker processes so what share of the machine is theirs. Of a list the first "
        "number counts, and what is none is ignored.",
    ),
    Variable(
        "COLUMNS",
        "command line",
        "How wide lines may be; by default the terminal's width, and 80 in a pipe.",
    ),
    Variable(
        "NO_COLOR",
        "command line",
        "If set to anything, the output has no colour and no progress bar.",
    ),
    Variable(
        "TERM",
        "command line",
        "If it is `dumb`, the output has no colour and no progress bar.",
    ),
    Variable(
        "OPENBLAS_CORETYPE",
        "command line",
        "Not passed on to the process in which `multihead bench` measures: NumPy's BLAS would take "
        "another core's kernels, and the comparison be unfair.",
    ),
)


def table() -> str:
    """Return the table of the page `docs/environment.md`, in Markdown.

    Examples
    --------
    >>> print(table().splitlines()[0])
    | variable | read by | meaning |
    """
    lines = ["| variable | read by | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {reader} | {meaning} |" for name, reader, meaning in VARIABLES]
    return "\n".join(lines) + "\n"
