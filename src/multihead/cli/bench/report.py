"""What was measured, as text: a small table for each shape."""

from __future__ import annotations

from typing import Any

from multihead.cli.bench.contenders import OURS
from multihead.cli.bench.measure import QUIET
from multihead.cli.bench.problem import PASSES
from multihead.cli.console import Cell, Console

NAMES = {"forward": "forward", "training": "forward + backward"}
BUSY = "busy"
NOTHING = "-"


def milliseconds(number: float) -> str:
    """Return a time with three digits that count.

    Examples
    --------
    >>> milliseconds(0.01234), milliseconds(1.234), milliseconds(12.34), milliseconds(1234.5)
    ('0.0123 ms', '1.23 ms', '12.3 ms', '1234 ms')
    """
    for limit, digits in ((0.1, 4), (1, 3), (10, 2), (100, 1)):
        if number < limit:
            return f"{number:.{digits}f} ms"
    return f"{number:.0f} ms"


def quiet(cell: dict[str, Any]) -> bool:
    """Tell whether a cell had the machine to itself."""
    return bool(cell["granted"] >= QUIET)


def ratio(cell: dict[str, Any], who: str) -> str:
    """Return a contender's time over ours, or that the machine was too busy to tell.

    Examples
    --------
    >>> times = {"multihead": {"median_ms": 2.0}, "torch": {"median_ms": 3.0}}
    >>> ratio({"granted": 1.0, "times": times}, "torch")
    '1.50x'
    >>> ratio({"granted": 0.5, "times": times}, "torch")
    'busy'
    """
    if not quiet(cell):
        return BUSY
    if who == OURS:
        return ""
    return f"{cell['times'][who]['median_ms'] / cell['times'][OURS]['median_ms']:.2f}x"


def groups(document: dict[str, Any]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Return the cells of each shape by pass, beside the shape's name."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in document["cells"]:
        found.setdefault(f"({', '.join(map(str, cell['shape']))})", {})[cell["pass"]] = cell
    return list(found.items())


def rows(cells: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the table of a shape: a contender a row, time and ratio of each pass."""
    names = dict.fromkeys(who for cell in cells.values() for who in cell["times"])
    table = []
    for who in names:
        row = [who]
        for name in PASSES:
            cell = cells[name]
            if who in cell["times"]:
                row += [milliseconds(cell["times"][who]["median_ms"]), ratio(cell, who)]
            else:
                row += [NOTHING, ""]
        table.append(row)
    return table


def machine_line(document: dict[str, Any]) -> str:
    """Return what a reader of the figures must know, in a sentence."""
    versions = [f"{who} {version}" for who, version in document["versions"].items()]
    threads = f"{document['threads']} thread{'s' * (document['threads'] > 1)}"
    return (
        f"{document['machine']['processor']}, {document['isa']}, {threads}, {document['dtype']}; "
        f"{', '.join(versions)}; {document['date']}"
    )


def notes(document: dict[str, Any]) -> list[str]:
    """Return what the tables do not say: who is absent and why, and whether it was busy."""
    found: dict[str, list[str]] = {}
    for cell in document["cells"]:
        for who, reason in cell["absent"].items():
            found.setdefault(f"{who}: {reason}", []).append(NAMES[cell["pass"]])
    lines = []
    for line, where in found.items():
        only = f" ({where[0]})" if len(set(where)) == 1 and not line.endswith("backward") else ""
        lines.append(f"{line}{only}.")
    noisy = [cell["granted"] for cell in document["cells"] if not quiet(cell)]
    if noisy:
        lines.append(
            f"The machine was busy in {len(noisy)} of {len(document['cells'])} measurements: this "
            f"process got down to {min(noisy):.0%} of the processors. Their times mean little, and "
            "ratios are left out."
        )
    return lines


def write(console: Console, document: dict[str, Any]) -> None:
    """Write the tables."""
    console.say(machine_line(document))
    head: list[Cell] = ["", "forward", "", "+ backward", ""]
    for shape, cells in groups(document):
        console.heading(f"(N, L, E, H) = {shape}")
        console.table([head, *map(_coloured, rows(cells))], right=(1, 2, 3, 4))
    console.line()
    console.say("Medians; a ratio is a time over ours: above 1, multihead is faster.")
    for line in notes(document):
        console.say(line, "yellow" if "busy" in line else "")


def _coloured(row: list[str]) -> list[Cell]:
    found: list[Cell] = [(row[0], "bold" if row[0] == OURS else "")]
    for text in row[1:]:
        style = ""
        if text.endswith("x"):
            style = "green" if float(text[:-1]) >= 1 else "red"
        found.append((text, "yellow" if text == BUSY else style))
    return found
