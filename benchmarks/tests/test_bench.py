"""The benchmark counts, compares and reports correctly; it is run on tiny cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contenders, run
from benchmarks.__main__ import main
from benchmarks.cases import GRID, MODES, QUICK, SHAPES, Case, Mode, Shape
from benchmarks.machine import Limit
from benchmarks.measure import DisagreementError, Plan, alternate, compare
from benchmarks.problem import Problem
from benchmarks.report import closing, opening, outcome, row, summary
from benchmarks.suite import measure_case
from benchmarks.targets.target import Reached, Result
from cells import BRIEF, TINY, cell, target

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "processor": "p",
    "cores": 1,
    "isa": "baseline",
    "threads": 1,
    "blas": None,
    "versions": {"torch": "2", "threadpoolctl": "3"},
}


# cases


def test_the_grid_is_every_shape_in_every_mode() -> None:
    assert len(GRID) == 63
    assert len(set(GRID)) == 63
    assert set(QUICK) < set(GRID)


@pytest.mark.parametrize("shape", [TINY, Shape(3, 17, 12, 2), Shape(1, 5, 8, 1)], ids=str)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_pairs_are_those_that_the_masks_leave(shape: Shape, mode: Mode) -> None:
    case = Case(shape, mode)
    seen = sum(
        1
        for n, i, j in product(range(shape.batch), range(shape.length), range(shape.length))
        if j < case.lengths()[n] and not (mode.causal and j > i)
    )
    assert case.pairs() == seen


def test_flops_of_a_dense_case() -> None:
    projections = 4 * 2 * (2 * 16) * 32 * 32
    attention = 4 * (2 * 16 * 16) * 32
    infer, train = (Case(TINY, Mode("", training=training)) for training in (False, True))
    assert infer.flops() == projections + attention
    assert train.flops() == 3 * projections + attention * 14 // 4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lengths_are_spread_over_a_quarter_to_the_whole(shape: Shape) -> None:
    lengths = Case(shape, Mode("", padding=True)).lengths()
    assert lengths.shape == (shape.batch,)
    assert lengths.min() >= shape.length // 4
    assert lengths.max() <= shape.length
    assert abs(lengths.mean() / shape.length - 0.625) < 0.02


# contenders


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_contenders_agree(mode: Mode) -> None:
    measured = measure_case(Case(TINY, mode), "numpy", lambda: 1e11, BRIEF)
    assert {"multihead", "torch"} <= measured.timings.keys()
    assert ("einsum" in measured.timings) == mode.dense
    assert ("einsum" in measured.absent) != mode.dense
    assert measured.ratio is not None


@pytest.mark.parametrize("name", ["out", "d_x", "in_proj_weight", "out_proj.bias"])
def test_a_wrong_result_is_not_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[[contenders.NumpyLayerStep], dict[str, np.ndarray]]
    right = contenders.NumpyLayerStep.results

    def wrong(step: contenders.NumpyLayerStep) -> dict[str, np.ndarray]:
        results = right(step)
        return results | {name: results[name] * 1.01}

    monkeypatch.setattr(contenders.NumpyLayerStep, "results", wrong)
    with pytest.raises(DisagreementError, match=name):
        measure_case(Case(TINY, Mode("train", training=True)), "numpy", lambda: 1e11, BRIEF)


@pytest.mark.parametrize("bad", [np.full(3, np.nan), np.full(4, 1.0), np.array([1, 1, 1.01])])
def test_compare_refuses(bad: np.ndarray) -> None:
    with pytest.raises(DisagreementError, match="out"):
        compare({"out": np.ones(3)}, {"out": bad}, 1e-3)


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    makers, absent = contenders.enter(Problem.of(Case(TINY, MODES[0])), "numpy")
    assert "torch" not in makers
    assert absent["torch"] == "not installed"

    measured = measure_case(Case(TINY, MODES[0]), "numpy", lambda: 1e11, BRIEF)
    assert "torch did not run in 1 cells: not installed" in closing([measured], 63)

    text = opening(MACHINE | {"versions": {"torch": None, "threadpoolctl": None}}, 63)
    assert "missing: torch" in text
    assert "missing: threadpoolctl" in text


@pytest.mark.parametrize(("granted", "said"), [(0.97, False), (0.6, True)])
def test_a_busy_machine_is_told(granted: float, said: bool) -> None:
    assert ("BUSY: other programs took 40%" in summary([], granted)) == said
    measured = cell(Case(TINY, MODES[0]), 1.0, 2.0)
    assert ("BUSY" in row(replace(measured, granted=granted))) == said
    result = Result(target(bound=1.0), Reached(2.0), granted)
    assert ("BUSY: we got 60%" in outcome(result)) == said


def test_the_limit_is_measured_with_what_the_machine_grants() -> None:
    limit = Limit(1)
    assert limit.granted == 1.0
    assert limit() > 1e8
    assert 0 < limit.granted <= 1
    assert limit.granted_since(limit.mark()) == 1.0


# measuring


def test_rounds_alternate_and_stop_at_the_budget() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    plan = Plan(rounds=4, fewest=1, budget=60.0, block=0.0)
    seconds, limits = alternate(steps, lambda: 1.0, plan)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4}
    assert limits == [1.0] * 4

    seconds, _ = alternate(steps, lambda: 1.0, Plan(rounds=50, fewest=2, budget=0.0, block=0.0))
    assert len(seconds["a"]) == 2


# report


def test_a_run_of_chosen_targets_measures_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.set_threads", lambda threads: None)
    monkeypatch.setattr("benchmarks.choose", lambda names, face: [target(name=names[0])])
    monkeypatch.setattr("benchmarks.targets.target.Limit.granted", 1.0)
    file = tmp_path / "bench.json"
    assert run(targets=["mine"], plan=BRIEF, json_file=file)
    text = capsys.readouterr().out
    assert "mine" in text
    assert "1 of 1 targets met" in text
    assert "(N, L, E, H)" not in text
    found = json.loads(file.read_text())
    assert found["cells"] == []
    assert found["targets"] == [
        {
            "name": "mine",
            "what": "what it is",
            "bound": 1.0,
            "at_most": False,
            "value": 2.0,
            "note": "",
            "verdict": "met",
            "granted_processor_time": 1.0,
        }
    ]


@pytest.mark.parametrize(("granted", "status"), [(0.95, 0), (0.6, 1)])
def test_a_busy_run_meets_nothing(
    granted: float,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.set_threads", lambda threads: None)
    monkeypatch.setattr("benchmarks.choose", lambda names, face: [target(name=names[0])])
    monkeypatch.setattr("benchmarks.targets.target.Limit.granted", granted)
    file = tmp_path / "bench.json"
    assert main(["--check", "--targets", "memory", "--json", str(file)]) == status
    text = capsys.readouterr().out
    assert f"{1 - status} of 1 targets met" in text
    assert ("busy: memory" in text) == bool(status)
    (found,) = json.loads(file.read_text())["targets"]
    assert found["verdict"] == ("busy" if status else "met")


def test_a_run_that_times_nothing_knows_that_it_is_busy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.set_threads", lambda threads: None)
    monkeypatch.setattr("benchmarks.choose", lambda names, face: [target(name=names[0])])
    # a process that got no time at all
    monkeypatch.setattr("benchmarks.machine.time.process_time", lambda: 0.0)
    assert main(["--check", "--targets", "memory"]) == 1
    text = capsys.readouterr().out
    assert "busy: memory" in text
    assert "\nBUSY         memory" in text


def test_the_command_line_chooses_targets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    monkeypatch.setattr("benchmarks.run", lambda **options: asked.update(options) or False)
    assert main(["--check", "--targets", "share", "memory"]) == 1
    assert asked["targets"] == ["share", "memory"]
    with pytest.raises(SystemExit):
        main(["--targets", "share", "nothing"])
    assert "no target begins with 'nothing'; there are grid-mean" in capsys.readouterr().err


def test_a_run_prints_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.set_threads", lambda threads: None)
    cases = [Case(TINY, mode) for mode in MODES]
    file = tmp_path / "bench.json"
    run(cases=cases, targets=["grid"], plan=BRIEF, json_file=file)
    text = capsys.readouterr().out
    for mode in MODES:
        assert f"\n{TINY!s:<20}{mode.name} " in text
    assert "geometric mean of torch / ours over 9 cells" in text
    assert "worst cell: " in text
    assert "9 of the grid's 63 cells" in text

    found = json.loads(file.read_text())
    machine = found["machine"]
    assert f"{machine['processor']}, " in text
    assert f"{machine['isa']}, {machine['threads']} threads each; {machine['date']}" in text
    age = datetime.now(timezone.utc) - datetime.fromisoformat(machine["date"])
    assert timedelta(0) <= age < timedelta(minutes=10)
    assert found["machine"]["isa"]
    assert found["machine"]["threads"] >= 1
    assert found["machine"]["versions"]["torch"].startswith("2.13.0")
    assert [entry["mode"] for entry in found["cells"]] == [mode.name for mode in MODES]
    for entry in found["cells"]:
        assert entry["seconds"]["multihead"]["median"] > 0
        assert entry["seconds"]["torch"]["rounds"]
        assert entry["fma_limit"]["median"] > 0


def test_a_run_that_is_out_of_time_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.set_threads", lambda threads: None)
    plan = Plan(rounds=1, fewest=1, budget=0.01, block=0.001, whole=0.0)
    run(cases=[Case(TINY, mode) for mode in MODES], targets=["grid", "memory"], plan=plan)
    text = capsys.readouterr().out
    assert "out of time: the last 9 cells were not run" in text
    assert "not measured: grid-mean, grid-worst, memory" in text
