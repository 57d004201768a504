"""Predictions beside runs: which step counts, what is outside, and what the table says."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.plan import __main__ as command
from benchmarks.plan import judge, page
from benchmarks.plan.cells import MEGABIT, TWO, Place

PLACE = Place(2, 300 * MEGABIT, TWO)
RATES = {
    "forward": 50e9,
    "backward": 60e9,
    "copying": 1e10,
    "carrying": 1e9,
    "bandwidth": PLACE.bandwidth,
    "latency": 1e-4,
    "granted": 1.0,
}


def found(*ratios: tuple[float, bool]) -> dict[str, Any]:
    """What a run gives whose steps are so far from the prediction, and steady or not."""
    each = judge.predicted(PLACE, TWO[0], RATES)
    turns = [{"seconds": x * each.seconds, "quiet": quiet, "rates": RATES} for x, quiet in ratios]
    return {"bytes": [each.sent] * 2, "memory": each.kept + each.passing, "turns": turns}


def test_the_median_of_steady_steps_counts() -> None:
    row = judge.judged(PLACE, TWO[0], found((1.1, True), (9, False), (0.9, True), (1.0, True)))
    assert row["ratios"] == pytest.approx({"seconds": 1, "bytes": 1, "memory": 1})
    assert (row["steps"], row["steady"]) == (4, 3)
    never = judge.judged(PLACE, TWO[0], found((1.1, False), (9, False), (0.9, False)))
    assert never["ratios"]["seconds"] == pytest.approx(1.1)
    assert judge.outside(never) == []


@pytest.mark.parametrize("ratio", [0.79, 1.21])
def test_what_is_outside_is_named(ratio: float) -> None:
    row = judge.judged(PLACE, TWO[0], found((ratio, True)))
    assert judge.outside(row) == ["seconds"]
    row["ratios"] |= {"bytes": 0.5, "memory": 2.0}
    assert judge.outside(row) == ["seconds", "bytes", "memory"]


def test_the_table_has_a_row_for_each_run() -> None:
    row = judge.judged(PLACE, TWO[0], found((1.1, True)))
    machine = {"processor": "P", "cores": 2, "isa": "avx2", "date": "2026-01-02T"}
    text = page.checked({"machine": machine, "rows": [row]})
    assert "| 300 Mbit/s | 2 | ring, L = 4,096, 4 heads, float32 |" in text
    assert "| 1.10 | 1.00 |" in text
    assert "Bytes sent are those predicted" in text
    row["measured"]["bytes"][1] += 1
    assert "Bytes sent" not in page.checked({"machine": machine, "rows": [row]})


def test_links_are_left_out_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run(place: Place, turns: int, most: int) -> list[dict[str, Any]]:
        asked.append(place)
        return [found((1.3 if cell == TWO[0] else 1.0, True)) for cell in place.cells]

    monkeypatch.setattr(command, "missing", lambda: "no ip")
    monkeypatch.setattr(command.start, "run", run)
    monkeypatch.setattr(command.signal, "signal", lambda number, handler: None)
    assert command.main(["--quick"]) == 1
    assert [place.rate for place in asked] == [None]
    said = capsys.readouterr().out
    assert "without shaped links: no ip" in said
    assert "outside 0.8 to 1.2: seconds of loopback, 2 ranks, ring" in said
