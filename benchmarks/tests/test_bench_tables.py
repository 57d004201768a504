"""The documents' figures are those of the results in ``benchmarks/results``."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables

Results = dict[str, dict[str, Any]]


@pytest.fixture
def results() -> Results:
    """The committed results, as if the machine had been quiet."""
    found = {
        face: json.loads((tables.RESULTS / f"{face}.json").read_text())
        for face in ("numpy", "torch")
    }
    for run in found.values():
        for part in (run, *run["cells"], *run["targets"]):
            part["granted_processor_time"] = 1.0
    return found


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documents, where a test may change them."""
    for name in tables.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((tables.ROOT / name).read_text())
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    return tmp_path


def test_the_documents_tell_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().err


def test_every_region_is_in_a_document() -> None:
    texts = [(tables.ROOT / name).read_text() for name in tables.DOCUMENTS]
    found = [match[2] for text in texts for match in tables.REGION.finditer(text)]
    assert sorted(found) == sorted(tables.REGIONS)
    assert sum(text.count("<!-- benchmark: ") for text in texts) == len(found)


@pytest.mark.parametrize("name", tables.DOCUMENTS)
def test_a_changed_figure_is_found_and_mended(
    name: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copied / name
    right = page.read_text()
    wrong = tables.REGION.sub(lambda found: f"{found[1]}9.9\n{found[4]}", right)
    page.write_text(wrong)
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith(f"{name}: not what benchmarks/results says")
    assert page.read_text() == wrong
    assert tables.main([]) == 0
    assert page.read_text() == right


def test_a_changed_result_changes_its_table(results: Results) -> None:
    before = tables.grid(results)
    cell = next(c for c in results["numpy"]["cells"] if c["mode"] == "train + dropout")
    cell["torch_over_ours"] = 77.7
    assert "77.7" not in before
    assert "| 77.7 |" in tables.grid(results)


def test_a_mode_that_was_not_measured_has_no_figure(results: Results) -> None:
    numpy = results["numpy"]
    numpy["cells"] = [c for c in numpy["cells"] if c["mode"] == "infer"]
    rows = [line for line in tables.grid(results).splitlines() if line[3:4].isdigit()]
    assert rows
    assert all(
        row.split(" | ")[2:] == [tables.NOTHING] * 3 + [f"{tables.NOTHING} |"] for row in rows
    )


def test_a_busy_cell_is_not_told(results: Results) -> None:
    cell = next(c for c in results["numpy"]["cells"] if c["mode"] == "infer")
    cell |= {"torch_over_ours": 77.7, "granted_processor_time": 0.95}
    assert "| 77.7 |" in (text := tables.grid(results))
    assert "The geometric mean over" in text
    cell["granted_processor_time"] = 0.89
    assert "77.7" not in (text := tables.grid(results))
    assert "| busy |" in text
    assert "The geometric mean over" not in text


def test_a_busy_model_is_not_told(results: Results) -> None:
    step = next(t for t in results["torch"]["targets"] if t["name"] == "torch-encoder-128-train")
    step |= {"value": 77.7}
    assert "| 77.7 |" in tables.models(results)
    assert "77.7 for whole steps" in tables.in_models(results)
    step["granted_processor_time"] = 0.89
    assert "| busy |" in tables.models(results)
    assert "77.7" not in tables.models(results) + tables.in_models(results)


@pytest.mark.parametrize(("granted", "told"), [(0.95, False), (0.5, True)])
def test_a_table_says_what_it_was_measured_on(results: Results, granted: float, told: bool) -> None:
    found = copy.deepcopy(results["numpy"])
    found["granted_processor_time"] = granted
    found["machine"] |= {"processor": "A Processor 9", "isa": "neon", "threads": 12}
    text = " ".join(tables.origin(found).split())
    assert "A Processor 9, neon, 12 threads each" in text
    assert f"; {found['machine']['date'][:10]}" in text
    assert ("the machine was busy (50% of it was ours)" in text) == told


@pytest.mark.parametrize(("budget", "told"), [(12.0, False), (2.5, True)])
def test_a_table_says_that_a_run_was_shorter(results: Results, budget: float, told: bool) -> None:
    results["numpy"]["settings"] |= {"quick": False, "seconds_for_a_cell": budget}
    text = " ".join(tables.origin(results["numpy"]).split())
    assert ("a shorter run, 2.5 s for a cell" in text) == told
    assert "quick" not in text


def test_a_busy_share_is_not_told_as_reached(results: Results) -> None:
    share = next(t for t in results["numpy"]["targets"] if t["name"] == "share-1024")
    share |= {"value": 0.812}
    assert "reaches 81% of the" in tables.grid(results)
    assert "| 81.2% |" in tables.targets(results)
    share["granted_processor_time"] = 0.89
    assert "of the FMA units" not in " ".join(tables.grid(results).split())
    assert "81.2%" not in tables.targets(results)


def test_more_than_the_limit_is_not_told_as_reached(results: Results) -> None:
    for target in results["numpy"]["targets"]:
        if target["name"].startswith("share-"):
            target |= {"value": 1.04, "granted_processor_time": 1.0}
    assert "of the FMA units" not in " ".join(tables.grid(results).split())
    assert "104.0%" not in tables.targets(results)


def test_an_unknown_region_is_refused(results: Results) -> None:
    text = "<!-- benchmark: nothing -->\n<!-- /benchmark -->"
    with pytest.raises(ValueError, match="no region is called 'nothing'; there are grid"):
        tables.rewritten(text, results)
