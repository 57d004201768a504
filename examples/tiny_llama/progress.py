"""A progress bar, by rich where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str], None]
Say = Callable[[str], None]


@contextmanager
def progress(total: int) -> Iterator[tuple[Advance, Say]]:
    """Yield what moves the bar by a step, with a word on it, and what prints a line above it."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:
        yield lambda word: None, lambda line: print(line, flush=True)
        return
    columns = ("step", MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, "{task.description}", disable=not sys.stdout.isatty())
    with bar:
        task = bar.add_task("", total=total)
        yield (
            lambda word: bar.update(task, advance=1, description=word),
            lambda line: bar.console.print(line, highlight=False),
        )
