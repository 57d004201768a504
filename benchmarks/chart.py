"""Draw the README's chart of the benchmark: `python -m benchmarks.chart`.

Ratios of times, PyTorch's layer over ours, of `benchmarks/results/numpy.json`; cells in which the
machine was busy are left out. With ``--check`` nothing is written, and the exit code is 1 if the
picture tells of other results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cases import SHAPES
from benchmarks.tables import COLUMNS, RESULTS, ROOT
from benchmarks.targets.target import QUIET

SOURCE = RESULTS / "numpy.json"
PICTURE = ROOT / "docs" / "pictures" / "speed.svg"
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#cc79a7")  # told apart by everybody
MARKERS = "osD^v"


def ratios(results: Mapping[str, Any], mode: str) -> dict[tuple[int, ...], float]:
    """Return the ratio of each shape in a mode, of the cells that were measured in quiet."""
    return {
        tuple(cell["shape"].values()): cell["torch_over_ours"]
        for cell in results["cells"]
        if cell["mode"] == mode and cell["granted_processor_time"] >= QUIET
    }


def draw(results: Mapping[str, Any], digest: str) -> None:
    """Write the picture."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "multihead"
    sizes = [(s.batch, s.length, s.embed_dim, s.num_heads) for s in SHAPES]
    found = {name: ratios(results, mode) for name, mode in COLUMNS.items()}
    rows = [size for size in sizes if any(size in of for of in found.values())]
    figure = Figure(figsize=(7.2, 0.42 * len(rows) + 1.5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.axvline(1, color="0.5", linewidth=1)
    for (name, of), colour, marker in zip(found.items(), COLOURS, MARKERS, strict=True):
        points = [(of[size], y) for y, size in enumerate(rows) if size in of]
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=7, label=name)
    axes.set_xscale("log", base=2)
    ticks = [1, 1.5, 2, 3, 4, 6, 8]
    axes.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlim(0.9, 9)
    axes.set_yticks(range(len(rows)), [", ".join(map(str, size)) for size in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_ylabel("N, L, E, H")
    axes.set_xlabel("time of torch.nn.MultiheadAttention / time of multihead")
    figure.legend(loc="outside upper center", ncols=len(COLUMNS), frameon=False, fontsize=9)
    words = {"Date": None, "Creator": None, "Description": digest}
    figure.savefig(PICTURE, metadata=words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the chart, or check it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chart", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, and write nothing")
    options = parser.parse_args(arguments)
    text = SOURCE.read_text()
    digest = "results " + hashlib.sha256(text.encode()).hexdigest()[:16]
    if not options.check:
        draw(json.loads(text), digest)
    elif digest not in PICTURE.read_text():
        print(f"{PICTURE.name} is not of {SOURCE.name}; run python -m benchmarks.chart")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
