"""How lengths cost: what is measured, and what the page says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling, tables

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return scaling.measure((256, 1024), lambda line: None)


def test_it_measures_every_length(found: dict[str, Any]) -> None:
    short, long = found["lengths"]
    assert (short["length"], long["length"]) == (256, 1024)
    assert long["input"] == 4 * 1024 * scaling.EMBED_DIM
    for name in ("one", "all"):
        assert 0 < short["seconds"][name] < long["seconds"][name]


def test_memory_is_that_of_rows_and_not_of_scores(found: dict[str, Any]) -> None:
    short, long = (each["memory"] for each in found["lengths"])
    grown = long - short
    scores = 4 * scaling.HEADS * (1024**2 - 256**2)
    assert 0 < grown < scores
    assert grown < 12 * 4 * (1024 - 256) * scaling.EMBED_DIM


def test_the_page_says_what_was_measured(found: dict[str, Any]) -> None:
    for each in found["lengths"]:
        each["granted_processor_time"] = 1.0
    found["lengths"][1] |= {"seconds": {"one": 0.5, "all": 0.26}, "memory": 12_582_912}
    found["lengths"][0]["granted_processor_time"] = 0.5
    first, second, _, meaning = tables.scaling({"scaling": found}).splitlines()[-4:]
    assert meaning == tables.BUSY_MEANS
    assert first.startswith("| 256 | busy | busy | busy |")
    assert second == "| 1,024 | 260 ms | 500 ms | 1.92 | 13 MB | 6.0 |"


def test_a_quick_run_writes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LENGTHS", (16, 32, 64))
    monkeypatch.setattr(scaling.tables, "main", lambda arguments: pytest.fail("a page"))
    file = tmp_path / "scaling.json"
    assert scaling.main(["--quick", "--json", str(file)]) == 0
    assert [each["length"] for each in json.loads(file.read_text())["lengths"]] == [16, 32]
