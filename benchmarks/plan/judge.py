"""What was measured beside what was predicted from rates measured around it."""

from __future__ import annotations

from statistics import median_low
from typing import Any

from benchmarks.plan.cells import Cell, Place
from multihead.distributed.cost import Cost, cost
from multihead.distributed.work import Cluster

BOUNDS = (0.8, 1.2)  # of what is measured over what is predicted


def judged(place: Place, cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table.

    Time is that of the step with the median ratio, among those around which the machine was as
    fast before as after; among all if it never was.
    """
    steady = [turn for turn in found["turns"] if turn["quiet"]] or found["turns"]
    pairs = [(turn["seconds"], predicted(place, cell, turn["rates"])) for turn in steady]
    ratios = [seconds / each.seconds for seconds, each in pairs]
    seconds, each = pairs[ratios.index(median_low(ratios))]
    memory = each.kept + each.passing
    return {
        "links": str(place),
        "ranks": place.ranks,
        "cell": str(cell),
        "steps": len(found["turns"]),
        "steady": sum(turn["quiet"] for turn in found["turns"]),
        "predicted": {
            "seconds": each.seconds,
            "waiting": each.waiting,
            "bytes": each.sent,
            "memory": memory,
        },
        "measured": {"seconds": seconds, "bytes": found["bytes"], "memory": found["memory"]},
        "ratios": {
            "seconds": seconds / each.seconds,
            "bytes": max(found["bytes"], key=lambda sent: abs(sent - each.sent)) / each.sent,
            "memory": found["memory"] / memory,
        },
        "rates": steady[ratios.index(median_low(ratios))]["rates"],
    }


def predicted(place: Place, cell: Cell, rates: dict[str, float]) -> Cost:
    """Return what the model says of a cell, where a rank does so much in a second."""
    cluster = Cluster(
        place.ranks,
        rates["bandwidth"],
        rates["latency"],
        rates["forward"],
        rates["backward"],
        rates["copying"],
        rates["carrying"],
    )
    return cost(cell.work, cluster, cell.scheme)


def outside(row: dict[str, Any]) -> list[str]:
    """Name what of a row is further from its prediction than it may be."""
    low, high = BOUNDS
    return [name for name, ratio in row["ratios"].items() if not low <= ratio <= high]
