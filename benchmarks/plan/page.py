"""The table of docs/scaling.md that has predictions beside measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table, wrapped

HEADING = ["links", "ranks", "problem", "predicted", "waiting", "measured", "ratio", "memory"]


def checked(found: Mapping[str, Any]) -> str:
    """Tell every run: seconds predicted and measured, and the ratios of time and memory."""
    machine = found["machine"]
    rows = []
    for row in found["rows"]:
        predicted, measured, ratios = row["predicted"], row["measured"], row["ratios"]
        rows.append(
            [
                row["links"],
                str(row["ranks"]),
                row["cell"],
                f"{predicted['seconds']:.3f} s",
                f"{predicted['waiting'] / predicted['seconds']:.0%}",
                f"{measured['seconds']:.3f} s",
                f"{ratios['seconds']:.2f}",
                f"{ratios['memory']:.2f}",
            ]
        )
    where = (
        f"{machine['processor']}, {machine['cores']} processors, {machine['isa']}, one thread a "
        f"rank; {machine['date'][:10]}."
    )
    exact = all(x == row["predicted"]["bytes"] for row in found["rows"] for x in _bytes(row))
    told = "Bytes sent are those predicted, on every rank of every run." if exact else ""
    return "\n\n".join(filter(None, [wrapped(where), table(HEADING, rows), told]))


def _bytes(row: Mapping[str, Any]) -> list[int]:
    sent: list[int] = row["measured"]["bytes"]
    return sent
