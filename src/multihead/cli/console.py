"""What commands write with: plain text or rich's colours, never wider than the terminal.

The words and their places are the same either way, so that a pipe shows what a terminal shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

Cell: TypeAlias = "str | tuple[str, str]"  # text, or text and a style of rich's

GAP = 2  # spaces between columns
NARROWEST = 30


def rich_console(*, stderr: bool = False) -> RichConsole | None:
    """Return rich's console for a terminal; None where there is none, or rich or colour is not.

    Examples
    --------
    >>> import os
    >>> os.environ["NO_COLOR"] = "1"
    >>> rich_console() is None
    True
    >>> del os.environ["NO_COLOR"]
    """
    stream = sys.stderr if stderr else sys.stdout
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return None
    try:
        from rich.console import Console as RichConsole
    except ImportError:
        return None
    return RichConsole(stderr=stderr, highlight=False, soft_wrap=True)


class Console:
    """Standard output, in lines that fit.

    Attributes
    ----------
    width : int
        Columns of the terminal, or what the environment variable ``COLUMNS`` says.
    """

    def __init__(self) -> None:
        self.width = max(shutil.get_terminal_size((80, 24)).columns, NARROWEST)
        self._rich = rich_console()

    def line(self, *cells: Cell) -> None:
        """Write one line as it is."""
        if self._rich is None:
            print("".join(map(_text, cells)).rstrip())
            return
        from rich.text import Text

        self._rich.print(Text.assemble(*cells))

    def heading(self, text: str) -> None:
        """Write a blank line and a heading."""
        self.line()
        self.line((text, "bold"))

    def say(self, text: str, style: str = "") -> None:
        """Write a text in lines that fit."""
        for part in _wrapped(text, self.width):
            self.line((part, style))

    def pairs(self, rows: Mapping[str, str]) -> None:
        """Write names and what belongs to them, in two columns."""
        self.table([[name, value] for name, value in rows.items()])

    def table(self, rows: Sequence[Sequence[Cell]], right: Sequence[int] = ()) -> None:
        """Write rows of cells; columns in `right` end at one place, the widest of the others wraps.

        No word is cut: one that is wider than its column makes the line longer.
        """
        widths = [max(len(_text(row[i])) for row in rows) for i in range(len(rows[0]))]
        loose = max((i for i in range(len(widths)) if i not in right), key=widths.__getitem__)
        rest = sum(widths) - widths[loose] + GAP * (len(widths) - 1)
        widths[loose] = max(min(widths[loose], self.width - rest), 8)
        for row in rows:
            self._row(row, widths, right, loose)

    def _row(
        self, row: Sequence[Cell], widths: Sequence[int], right: Sequence[int], loose: int
    ) -> None:
        parts = _wrapped(_text(row[loose]), widths[loose])
        for turn, part in enumerate(parts):
            line: list[Cell] = []
            for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
                text = part if i == loose else "" if turn else _text(cell)
                padded = text.rjust(width) if i in right else text.ljust(width)
                last = i == len(widths) - 1
                line.append((padded.rstrip() if last else padded + " " * GAP, _style(cell)))
            self.line(*line)

    def document(self, options: Any, document: Mapping[str, Any]) -> bool:
        """Write what ``--json`` asks for, and return whether the text is wanted too."""
        if options.json is None:
            return True
        text = json.dumps(document, indent=2)
        if options.json == "-":
            print(text)
            return False
        with open(options.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        return True


@contextlib.contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show how far it has got, on standard error, in a terminal where rich is; tell it where.

    Examples
    --------
    >>> with progress("counting", 3) as step:
    ...     for done in range(3):
    ...         step(done + 1)
    """
    console = rich_console(stderr=True)
    if console is None:
        yield lambda done: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _style(cell: Cell) -> str:
    return "" if isinstance(cell, str) else cell[1]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
