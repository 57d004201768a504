"""Markdown as the documents have it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 108


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table.

    Examples
    --------
    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [heading, *rows]
    written = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([written[0], "|" + "---|" * len(heading), *written[1:]])


def wrapped(text: str) -> str:
    """Break a paragraph into lines."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
