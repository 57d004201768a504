"""The README's chart is of the recorded results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import chart


def test_the_picture_is_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert chart.main(["--check"]) == 0, capsys.readouterr().out


def test_other_results_are_another_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = json.loads(chart.SOURCE.read_text())
    results["cells"][0]["torch_over_ours"] *= 2
    changed, picture = tmp_path / "numpy.json", tmp_path / "speed.svg"
    changed.write_text(json.dumps(results))
    monkeypatch.setattr(chart, "SOURCE", changed)
    assert chart.main(["--check"]) == 1
    monkeypatch.setattr(chart, "PICTURE", picture)
    assert chart.main([]) == 0
    assert chart.main(["--check"]) == 0
    quiet = [cell for cell in results["cells"] if cell["granted_processor_time"] >= chart.QUIET]
    shown = sum(cell["mode"] in chart.COLUMNS.values() for cell in quiet)
    # a marker each, and one in the legend
    assert picture.read_text().count("<use xlink:href") >= shown + len(chart.COLUMNS)
