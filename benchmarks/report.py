"""How the results are told: lines for a terminal, and one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import EINSUM, TORCH
from benchmarks.suite import Cell
from benchmarks.targets.grid import mean_ratio, worst
from benchmarks.targets.target import QUIET, Result

# characters for the name of a target
NAMES = 16

HEADING = (
    f"{'(N, L, E, H)':<20}{'mode':<17}{'ours':>10}{'torch':>10}"
    f"{'torch/ours':>12}{'FMA limit':>11}{'einsum':>10}"
)


def duration(seconds: float | None) -> str:
    """Write a time in three significant digits.

    Examples
    --------
    >>> duration(0.01234), duration(1.5), duration(0.0000123), duration(None)
    ('12.3 ms', '1.50 s', '12.3 us', '-')
    """
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size or unit == "us":
            value = seconds / size
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def opening(machine: dict[str, Any], cells: int, dtype: str = "float32") -> str:
    """Write the lines above the table: machine, versions, who is missing, what the columns mean.

    With no cells to measure there is no table, and nothing about it.
    """
    versions = machine["versions"]
    present = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    lines = [
        f"{machine['processor']}, {machine['cores']} cores; {machine['isa']}, "
        f"{machine['threads']} threads each; {machine['date']}",
        present + (f"; NumPy's BLAS: {machine['blas']}" if machine["blas"] else ""),
    ]
    lines += [
        f"missing: {name} is not installed ({loss}); pip install '.[bench]'"
        for name, loss in (
            ("torch", "no comparison, and no target that needs one"),
            ("threadpoolctl", "NumPy's BLAS keeps its own number of threads"),
        )
        if versions[name] is None
    ]
    if cells == 0:
        return "\n".join(lines)
    lines += [
        f"{cells} cells, {dtype}, self-attention. train: clear the gradients, forward, backward to "
        "the input and all parameters.",
        "FMA limit: our share of float32's, measured in the same rounds. Work that a mask hides is "
        "not counted as done.",
        "",
        HEADING,
    ]
    return "\n".join(lines)


def row(cell: Cell) -> str:
    """Write one line of the table."""
    ratio = cell.ratio
    return (
        f"{cell.case.shape!s:<20}{cell.case.mode.name:<17}{duration(cell.ours):>10}"
        f"{duration(cell.seconds(TORCH)):>10}"
        f"{'-' if ratio is None else f'{ratio:.2f}x':>12}{cell.share:>10.0%} "
        f"{duration(cell.seconds(EINSUM)):>10}" + ("  BUSY" if cell.granted < QUIET else "")
    )


def outcome(result: Result, column: int = 0) -> str:
    """Write the lines for one target: name and verdict, what it is, target, reached.

    Parameters
    ----------
    result : Result
    column : int
        Characters for the name, if the usual 16 are too few.
    """
    column = max(column, NAMES)
    target, value = result.target, result.reached.value
    word = result.verdict.upper() if result.verdict in ("missed", "busy") else result.verdict
    sign = "<=" if target.at_most else ">="
    wanted = "" if target.bound is None else f"target {sign} {target.form.format(target.bound)}"
    reached = "" if value is None else f"reached {target.form.format(value)}"
    busy = f"BUSY: we got {result.granted:.0%} of the processors" if result.granted < QUIET else ""
    figures = ", ".join(filter(None, (wanted, reached)))
    told = "; ".join(filter(None, (figures, result.reached.note, busy)))
    return f"{word:<13}{target.name:<{column}}{target.what}\n{'':<{13 + column}}{told}"


def summary(results: Sequence[Result], granted: float) -> str:
    """Write the last lines: how many targets were met, and whether the machine was busy."""
    lines = []
    if results:
        verdicts = [result.verdict for result in results]
        lines = ["", f"{verdicts.count('met')} of {len(results)} targets met"]
        for word in ("missed", "busy", "not measured"):
            names = [result.target.name for result in results if result.verdict == word]
            lines += [f"{word}: {', '.join(names)}"] if names else []
    if granted < QUIET:
        lines.append(
            f"BUSY: other programs took {1 - granted:.0%} of the processors' time while this ran. "
            "Do not trust these figures: repeat on a quiet machine."
        )
    return "\n".join(lines)


def closing(cells: Sequence[Cell], grid: int) -> str:
    """Write the lines below the table: who did not run, mean, worst cell.

    Parameters
    ----------
    cells : sequence of Cell
        What was measured.
    grid : int
        Cells in the whole grid.
    """
    reasons: dict[tuple[str, str], int] = {}
    for cell in cells:
        for name, reason in cell.absent.items():
            reasons[name, reason] = reasons.get((name, reason), 0) + 1
    lines = [f"{name} did not run in {n} cells: {why}" for (name, why), n in reasons.items()]
    mean, lowest = mean_ratio(cells), worst(cells)
    lines.append("")
    if mean is not None and lowest is not None:
        lines += [
            f"geometric mean of torch / ours over {len(cells)} cells: {mean:.2f}x",
            f"worst cell: {lowest[0]:.2f}x at {lowest[1].case}",
        ]
    if len(cells) < grid:
        lines.append(f"({len(cells)} of the grid's {grid} cells: its targets are for all of it)")
    return "\n".join(lines)


def document(
    cells: Sequence[Cell],
    results: Sequence[Result],
    machine: dict[str, Any],
    settings: dict[str, Any],
    granted: float,
) -> dict[str, Any]:
    """Collect all that was measured, ready for ``json.dump``."""
    return {
        "machine": machine,
        "settings": settings,
        "granted_processor_time": granted,
        "cells": [
            {
                "shape": dict(
                    zip(
                        ("N", "L", "E", "H"),
                        (shape.batch, shape.length, shape.embed_dim, shape.num_heads),
                        strict=True,
                    )
                ),
                "mode": cell.case.mode.name,
                "flops": cell.case.flops(),
                "fma_limit": cell.limit.document(),
                "share_of_fma_limit": cell.share,
                "seconds": {name: timing.document() for name, timing in cell.timings.items()},
                "torch_over_ours": cell.ratio,
                "absent": cell.absent,
                "granted_processor_time": cell.granted,
            }
            for cell in cells
            for shape in (cell.case.shape,)
        ],
        "geometric_mean": mean_ratio(cells),
        "targets": [result.document() for result in results],
    }
