"""A page of what was measured: one file, with its chart in SVG, for any screen."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from multihead.cli.bench.contenders import OURS
from multihead.cli.bench.report import (
    NAMES,
    groups,
    machine_line,
    milliseconds,
    notes,
    quiet,
    ratio,
    rows,
)

WIDTH, NAME, ROW = 360, 96, 20  # of the chart, its names and a bar, in its own units
STYLE = """
:root { color-scheme: light dark; --ours: #0b6e99; --other: #9aa5ad; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
text { fill: currentColor; font: 11px system-ui, sans-serif; }
.ours { fill: var(--ours); } .other { fill: var(--other); } .ours-name { font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); }
@media (max-width: 32rem) { table { font-size: 0.8rem; } th, td { padding: 0.25rem 0.3rem; } }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
"""


def page(document: dict[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    document : dict
        What ``multihead bench --json`` writes.

    Returns
    -------
    str
        HTML that refers to nothing outside itself.
    """
    parts = [
        "<h1>multihead bench</h1>",
        f"<p>{escape(machine_line(document))}</p>",
        "<p>Medians, a shorter bar is faster. A ratio is a time over ours: above 1, multihead is "
        "faster.</p>",
    ]
    for shape, cells in groups(document):
        parts.append(f"<h2>(N, L, E, H) = {escape(shape)}</h2>")
        for cell in cells.values():
            parts.append(_chart(shape, cell))
        parts.append(_table(cells))
    parts += [f"<p>{escape(note)}</p>" for note in notes(document)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>multihead bench</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _chart(shape: str, cell: dict[str, Any]) -> str:
    """Draw a bar for each contender; none where the machine was busy, and lengths would mislead."""
    name = NAMES[cell["pass"]]
    height = ROW * (len(cell["times"]) + 1) + 4
    label = escape(f"Milliseconds of {name} at {shape}", quote=True)
    bars = "\n".join(_bars(cell))
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">\n'
        f'<text x="0" y="14" font-weight="600">{name}</text>\n{bars}\n</svg>'
    )


def _bars(cell: dict[str, Any]) -> Iterator[str]:
    slowest = max(each["median_ms"] for each in cell["times"].values())
    room = WIDTH - NAME - 100  # the figures follow the bar
    for i, (who, each) in enumerate(cell["times"].items(), 1):
        kind = "ours" if who == OURS else "other"
        length = max(room * each["median_ms"] / slowest, 1) if quiet(cell) else 0
        y = ROW * i
        figures = f"{milliseconds(each['median_ms'])}  {ratio(cell, who)}".strip()
        yield f'<text class="{kind}-name" x="0" y="{y + 14}">{escape(who)}</text>'
        yield (
            f'<rect class="{kind}" x="{NAME}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}"'
            ' rx="2"/>'
        )
        yield f'<text x="{NAME + length + 6:.1f}" y="{y + 14}">{figures}</text>'


def _table(cells: dict[str, dict[str, Any]]) -> str:
    head = "<tr><th></th><th>forward</th><th></th><th>+ backward</th><th></th></tr>"
    lines = [
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>"
        for row in rows(cells)
    ]
    return f'<div class="wide"><table>\n{head}\n' + "\n".join(lines) + "\n</table></div>"
