"""The benchmark's targets: what they are taken from, how they are chosen and judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import multihead as mh
from benchmarks.cases import GRID, MODES, SHAPES, Case, Mode, Shape
from benchmarks.report import outcome, summary
from benchmarks.suite import Cell
from benchmarks.targets import (
    TARGETS,
    attention,
    bnns,
    choose,
    coexist,
    grid,
    layer,
    processes,
    ragged,
    threads,
)
from benchmarks.targets.target import Reached, Result, Run, Target, paired, reach
from cells import BRIEF, TINY, cell, target


def a_run(cells: Sequence[Cell] = ()) -> Run:
    this = Run("numpy", mh.get_num_threads(), BRIEF)
    this.cells = {cell.case: cell for cell in cells}
    return this


def value(target: Target, this: Run) -> float:
    reached = reach(target, this).reached.value
    assert reached is not None
    return reached


def test_every_row_of_the_table_has_its_targets() -> None:
    names = [one.name for one in TARGETS]
    assert len(set(names)) == len(names)
    rows = "grid dropout share padding ragged weights small decode threads memory mask avx2 region"
    assert {name.partition("-")[0] for name in names} == {*rows.split(), "bnns", "coexist"}
    assert [one.name for one in TARGETS if one.bound is None] == [
        "ragged-balance",
        "decode-4",
    ]
    assert all(set(one.grid) <= set(GRID) for one in TARGETS)


def test_targets_are_chosen_by_the_beginning_of_their_names() -> None:
    assert [one.name for one in choose(["share-1", "memory"])] == ["share-1024", "memory"]
    with pytest.raises(ValueError, match="begins with 'nothing'; there are grid-mean, grid-worst"):
        choose(["memory", "nothing"])


@pytest.mark.parametrize(
    ("reached", "bound", "at_most", "verdict"),
    [
        (1.0, 1.0, False, "met"),
        (0.99, 1.0, False, "missed"),
        (1.0, 1.0, True, "met"),
        (1.01, 1.0, True, "missed"),
        (float("nan"), 1.0, True, "missed"),
        (float("nan"), 1.0, False, "missed"),
        (5.0, None, False, "told"),
        (None, 1.0, True, "not measured"),
    ],
)
def test_verdicts(reached: float | None, bound: float | None, at_most: bool, verdict: str) -> None:
    result = reach(target(bound=bound, reached=reached, at_most=at_most), a_run())
    assert result.verdict == verdict
    text = outcome(result)
    assert text.startswith(verdict.upper() if verdict == "missed" else verdict)
    assert ("target <= 1.00x" in text) == (bound is not None and at_most)
    assert ("reached" in text) == (reached is not None)
    assert (f"{verdict}: name" in summary([result], 1.0)) == (verdict in ("missed", "not measured"))


@pytest.mark.parametrize("reached", [2.0, 0.5])
def test_a_busy_target_is_neither_met_nor_missed(reached: float) -> None:
    result = Result(target(bound=1.0), Reached(reached), granted=0.89)
    assert result.verdict == result.document()["verdict"] == "busy"
    assert outcome(result).startswith("BUSY")
    assert "busy: name" in summary([result], 1.0)
    assert Result(target(bound=1.0), Reached(reached), granted=0.9).verdict in ("met", "missed")
    assert Result(target(bound=None), Reached(reached), granted=0.5).verdict == "told"


def test_a_share_beyond_the_limit_is_busy() -> None:
    case = Case(TINY, Mode("train", training=True))
    one = grid._share_target("share", TINY, 0.85)
    for share, verdict in ((1.21, "busy"), (1.0, "met"), (0.5, "missed")):
        this = a_run([cell(case, ours=1.0, torch=None, limit=case.flops() / share)])
        assert reach(one, this).verdict == verdict


def test_the_grid_is_held_against_its_targets() -> None:
    train = Mode("train", training=True)
    work = Case(grid.LONG[0], train).flops()
    this = a_run(
        [
            cell(Case(grid.LONG[0], train), ours=1.0, torch=4.0, limit=work / 0.5),
            cell(Case(SHAPES[0], train), ours=1.0, torch=0.5),
            cell(Case(SHAPES[6], train), ours=1.0, torch=2.0),
            cell(Case(SHAPES[6], MODES[0]), ours=1.0, torch=None),
        ]
    )
    found = {one.name: reach(one, this) for one in choose(["grid", "small", "share-512"])}
    assert found["grid-mean"].reached.value == pytest.approx(4 ** (1 / 3))
    assert found["grid-mean"].verdict == "missed"
    assert found["grid-mean"].reached.note == "3 of 63 cells; the record to chase is 2.0x"
    assert found["grid-worst"].reached.value == 0.5
    assert str(Case(SHAPES[0], train)) in found["grid-worst"].reached.note
    assert "1 cells under 1" in found["grid-worst"].reached.note
    assert found["small-train"].reached.value == pytest.approx(1.0)
    assert found["small-infer"].verdict == "not measured"
    assert found["share-512"].reached.value == pytest.approx(0.5)
    assert "reached 50.0%" in outcome(found["share-512"])


def test_targets_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "PADDED", TINY)
    monkeypatch.setattr(ragged, "PADDED", TINY)
    this = a_run()
    assert value(grid._share_target("share", TINY, 0.85), this) > 0
    assert value(layer._dropout(TINY), this) > 0
    for training in (False, True):
        for made in (layer._padding(training), ragged._proportion(training)):
            found = reach(made, this)
            assert found.reached.value is not None
            assert found.reached.value > 0
            assert "of the dense" in found.reached.note


@pytest.mark.parametrize("training", [False, True])
def test_ragged_flops_are_those_of_the_sequences(training: bool) -> None:
    alone = [Case(Shape(1, n, 32, 4), Mode("", training=training)).flops() for n in (3, 5, 16)]
    assert ragged.ragged_flops([3, 5, 16], 32, training) == sum(alone)


def test_a_ragged_step_is_the_layer_on_each_sequence() -> None:
    step = ragged.RaggedStep([3, 5], 32, 4, training=True)
    step()
    whole = step.d_x.values.copy()
    alone = step.layer
    for x, d_out, d_x in zip(
        step.x.to_list(), step.d_out.to_list(), step.d_x.to_list(), strict=True
    ):
        alone(x, x, x, need_weights=False)
        alone.backward(d_out, out=(d_x, d_x, d_x))
    np.testing.assert_array_equal(step.d_x.values, whole)


def test_threads_are_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mh.get_num_threads()
    assert value(threads._scaling(TINY), a_run()) > 0
    assert mh.get_num_threads() == before
    assert paired([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    assert threads.best([1.5, 1.9, 1.7]) == 1.9


def test_a_region_is_that_of_the_run_s_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        threads.native, "region_seconds", lambda *given: asked.append(given) or 5e-7
    )
    result = reach(choose(["region"])[0], Run("numpy", 3, BRIEF))
    assert result.verdict == "met"
    assert "reached 0.50 us" in outcome(result)
    assert set(asked) == {(threads.REGIONS, 3)}


def test_targets_of_attention_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "KEYS", 96)
    monkeypatch.setattr(attention, "WINDOW", 8)
    assert attention._window().sum(axis=1).max() == 8
    for one in attention.TARGETS:
        assert value(one, a_run()) > 0


def test_torch_and_we_in_turn() -> None:
    found = reach(coexist._coexistence("coexist", TINY), a_run())
    assert found.reached.value is not None
    assert "both" in found.reached.note


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MEMORY", Shape(1, 1024, 256, 4))
    assert 1 < value(choose(["memory"])[0], a_run()) < 20


def test_another_instruction_set_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"value": 0.9, "note": "of its own", "granted_processor_time": 0.5}
    calls = []

    def fresh(arguments: list[str], **environment: str) -> str:
        calls.append((arguments, environment))
        file = Path(arguments[arguments.index("--json") + 1])
        file.write_text(json.dumps({"machine": {"isa": "avx2"}, "targets": [told]}))
        return ""

    monkeypatch.setattr(processes, "fresh", fresh)
    monkeypatch.setattr(processes._native, "available_isas", lambda: ["avx2"])
    result = reach(choose(["avx2-512"])[0], a_run())
    assert (result.reached.value, result.verdict, result.granted) == (0.9, "busy", 0.5)
    ((arguments, environment),) = calls
    assert arguments[arguments.index("--targets") + 1] == "share-512"
    assert environment == {"MULTIHEAD_ISA": "avx2"}

    monkeypatch.setattr(processes._native, "available_isas", lambda: ["baseline"])
    assert reach(choose(["avx2-512"])[0], a_run()).verdict == "not measured"


@pytest.mark.parametrize("training", [False, True])
def test_a_bnns_step_does_the_layer_s_work(training: bool) -> None:
    case = Case(Shape(2, 20, 16, 4), Mode("", training=training))
    ours, theirs = a_run().step(case), bnns.BnnsStep(case)
    ours()
    theirs()
    results = ours.results()
    assert theirs.out.tobytes() == results["out"].tobytes()
    if training:
        for name, grad in {**theirs.grads, "d_x": theirs.d_x}.items():
            assert grad.tobytes() == results[name].tobytes(), name
