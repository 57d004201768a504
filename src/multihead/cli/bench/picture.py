"""A chart of what was measured, by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multihead.cli.bench.contenders import OURS
from multihead.cli.bench.problem import PASSES
from multihead.cli.bench.report import NAMES, groups, machine_line, milliseconds, quiet, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {True: "#0b6e99", False: "#9aa5ad"}  # ours, and others'


def picture(document: dict[str, Any]) -> Figure:
    """Draw a row of bars for each shape, a column for each pass.

    Parameters
    ----------
    document : dict
        What ``multihead bench --json`` writes.

    Returns
    -------
    matplotlib.figure.Figure
        ``savefig`` writes it.
    """
    from matplotlib.figure import Figure

    found = groups(document)
    bars = max(len(cell["times"]) for _, cells in found for cell in cells.values())
    size = 9.0, len(found) * (0.35 * bars + 0.7) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(found), len(PASSES), squeeze=False)
    for row, (shape, cells) in zip(axes, found, strict=True):
        for place, name in zip(row, PASSES, strict=True):
            _bars(place, cells[name])
            place.set_title(f"{NAMES[name]}, {shape}", fontsize=9, loc="left")
    figure.suptitle(machine_line(document), fontsize=8, x=0.01, ha="left", wrap=True)
    figure.supxlabel("milliseconds, medians; ratios are times over ours", fontsize=8)
    return figure


def _bars(axes: Axes, cell: dict[str, Any]) -> None:
    names = list(cell["times"])
    times = [cell["times"][who]["median_ms"] for who in names]
    lengths = times if quiet(cell) else [0.0] * len(times)  # others would mislead
    bars = axes.barh(names, lengths, color=[COLOURS[who == OURS] for who in names], height=0.7)
    labels = [
        f"{milliseconds(each)}  {ratio(cell, who)}".strip()
        for who, each in zip(names, times, strict=True)
    ]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_xlim(0, 1.5 * max(times))
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
