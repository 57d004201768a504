"""The benchmark of half precision: its grid, its peers, its targets, and what cannot run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import multihead as mh
from benchmarks import contenders, machine, native, peers, run, tables
from benchmarks.__main__ import main
from benchmarks.cases import GRID, MODES, Case, Mode, Shape
from benchmarks.contenders import OURS, TORCH, enter, tensor
from benchmarks.measure import Plan, Timing
from benchmarks.problem import Problem, numpy_dtype
from benchmarks.suite import TOLERANCES, Cell, check, measure_case
from benchmarks.targets import FACES, choose, half, half_peers
from benchmarks.targets.target import Run, reach
from cells import BRIEF, TINY
from multihead import _native

QUICK = Plan(rounds=2, fewest=1, budget=0.01, block=0.001, compiling=False)
INFER, PADDED, CAUSAL = MODES[:3]


def a_run(*cells: Cell) -> Run:
    this = Run("half", mh.get_num_threads(), BRIEF)
    this.cells = {cell.case: cell for cell in cells}
    return this


def a_cell(case: Case, **seconds: float) -> Cell:
    timings = {name.replace("_", " "): Timing((each,)) for name, each in seconds.items()}
    return Cell(case, Timing((1e11,)), timings, {"openvino": "not installed"})


# the rows


def test_every_row_has_its_bound() -> None:
    rows = {one.name: (one.bound, one.at_most) for one in FACES["half"]}
    assert rows == {
        "half-mean": (1.6, False),
        "half-worst": (1.0, False),
        "half-amx-mean": (1.2, False),
        "half-amx-worst": (0.95, False),
        "half-peers-mean": (1.0, False),
        "half-peers-worst": (0.9, False),
        "avx512_bf16-train": (1.6, False),
        "avx512_bf16-infer": (1.6, False),
        "amx-train": (None, False),
        "amx-infer": (None, False),
        "neon_bf16-train": (None, False),
        "neon_bf16-infer": (None, False),
        "float16-train": (1.0, False),
        "float16-infer": (1.0, False),
        "widened-train": (0.95, False),
        "widened-infer": (0.95, False),
        "half-memory": (0.6, True),
        "half-decode": (0.6, True),
    }
    assert choose(["half-mean"], "half")[0].grid == GRID
    assert len(half_peers.RACED) == 21


# contenders


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_both_are_given_the_same_numbers(dtype: str) -> None:
    problem = Problem.of(Case(TINY, INFER), dtype=dtype)
    whole = Problem.of(Case(TINY, INFER))
    assert (problem.dtype, tensor(problem.x).dtype) == (dtype, getattr(torch, dtype))
    np.testing.assert_array_equal(problem.x, whole.x.astype(numpy_dtype(dtype)))
    np.testing.assert_array_equal(tensor(problem.x).float().numpy(), problem.x.astype(np.float32))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_contenders_agree_in_bfloat16(mode: Mode) -> None:
    measured = measure_case(Case(TINY, mode), "half", lambda: 1e11, QUICK)
    assert {OURS, TORCH} <= measured.timings.keys()
    raced = not mode.training and not mode.weights
    assert (peers.BY_HAND in measured.timings) == raced
    assert (measured.absent[peers.COMPILED] == "not in a quick run") == raced


# PyTorch's own, of what it imports to compile
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", [INFER, PADDED, CAUSAL], ids=lambda mode: mode.name)
def test_a_compiled_peer_agrees(mode: Mode) -> None:
    makers, _ = enter(Problem.of(Case(TINY, mode), dtype="bfloat16"), "half")
    steps = {name: makers[name]() for name in (OURS, peers.COMPILED)}
    for step in steps.values():
        step()
    check(steps, mode, tolerance=TOLERANCES["bfloat16"])


def test_a_peer_that_is_wrong_does_not_race(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[[Any], dict[str, np.ndarray]] = peers.ByHand.results
    monkeypatch.setattr(peers.ByHand, "results", lambda step: {"out": 2 * right(step)["out"]})
    measured = measure_case(Case(TINY, INFER), "half", lambda: 1e11, QUICK)
    assert {OURS, TORCH} <= measured.timings.keys()
    assert peers.BY_HAND not in measured.timings
    assert "wrong: " in measured.absent[peers.BY_HAND]


def test_without_peers_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    problem = Problem.of(Case(TINY, INFER), dtype="bfloat16")
    _, absent = enter(problem, "half")
    assert absent == {peers.OPENVINO: "not installed"}
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    makers, absent = enter(problem, "half")
    assert (list(makers), absent) == ([OURS], {TORCH: "not installed"})


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_every_cell_is_compiled_anew() -> None:
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    for length in (3, 4, 5, 6):
        problem = Problem.of(Case(Shape(1, length, 8, 2), INFER), dtype="bfloat16")
        peers.ByHand(problem, compiled=True)()
    assert counted["unique_graphs"] == before + 4


# against others


def test_the_best_peer_of_each_cell_counts() -> None:
    first, second = half_peers.RACED[:2]
    this = a_run(
        a_cell(first, multihead=1.0, torch=3.0, torch_compiled=2.0),
        a_cell(second, multihead=1.0, torch=0.5),
        a_cell(GRID[-1], multihead=1.0, torch=0.1),
    )
    found = {one.name: reach(one, this).reached for one in choose(["half-peers"], "half")}
    assert found["half-peers-mean"].value == pytest.approx(1.0)
    assert found["half-peers-worst"].value == 0.5
    assert found["half-peers-worst"].note.startswith(f"torch at {second}; 2 of 21 cells; openvino")
    assert "torch compiled is the best of 1" in found["half-peers-mean"].note
    alone = reach(choose(["half-peers-mean"], "half")[0], a_run())
    assert alone.verdict == "not measured"


@pytest.mark.parametrize("amx", [False, True])
def test_with_amx_other_bounds_hold(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    present = ["avx512_bf16", *(["amx_bf16"] if amx else [])]
    monkeypatch.setattr(half_peers, "instructions", lambda: present)
    this = a_run(a_cell(GRID[0], multihead=1.0, torch=1.1))
    verdicts = {
        one.name: reach(one, this).verdict
        for one in choose(["half-mean", "half-worst", "half-amx"], "half")
    }
    without = {"half-mean": "missed", "half-worst": "met"}
    with_amx = {"half-amx-mean": "missed", "half-amx-worst": "met"}
    told, not_told = (with_amx, without) if amx else (without, with_amx)
    assert verdicts == told | dict.fromkeys(not_told, "not measured")


# against our own float32


def test_a_set_that_lacks_says_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    one = choose(["amx-train"], "half")[0]
    monkeypatch.setattr(half._native, "available_isas", lambda: ["avx512", "baseline"])
    monkeypatch.setattr(half, "instructions", lambda: ["avx512_bf16"])
    result = reach(one, a_run())
    assert (result.verdict, result.reached.note) == ("not measured", "this CPU has no amx_bf16")
    monkeypatch.setattr(half, "instructions", lambda: ["amx_bf16"])
    note = reach(one, a_run()).reached.note
    assert note == "this CPU has amx_bf16, but the engine offers avx512, baseline"


@pytest.mark.parametrize("word", ["train", "infer"])
def test_a_set_is_held_to_its_lowest_shape(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def ratio(run: Run, case: Case, dtype: str, parts: int) -> float:
        used.append((_native.isa(), case.mode.training, dtype))
        return 2.0 - len(used) / 4

    monkeypatch.setattr(half, "absent", lambda name: "")
    monkeypatch.setattr(half, "instructions", lambda: ("avx512_bf16",))
    monkeypatch.setattr(half, "kernel_set", lambda name: machine.kernel_set("baseline"))
    monkeypatch.setattr(half, "beside_float32", ratio)
    before = _native.isa()
    (target,) = choose([f"avx512_bf16-{word}"], "half")
    found = reach(target, a_run()).reached
    assert found.value == 1.0
    assert used == [("baseline", word == "train", "bfloat16")] * 4
    assert _native.isa() == before
    # whose instructions are slow is not held
    monkeypatch.setattr(half, "instructions", lambda: ("avx512_bf16", "amx_bf16"))
    found = reach(target, a_run()).reached
    assert found.value is None
    assert "half the rate" in found.note


@pytest.mark.parametrize("name", ["float16", "widened"])
def test_widened_targets_are_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "SHAPES", (TINY, Shape(1, 5, 8, 2)))
    for one in choose([name], "half"):
        found = reach(one, a_run()).reached
        assert found.value is not None
        assert found.value > 0
        assert found.note.startswith(_native.isa() if name == "float16" else "")
        assert str(TINY) in found.note


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_told_beside_float32_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "MEMORY", Shape(1, 1024, 256, 4))
    found = reach(choose(["half-memory"], "half")[0], a_run()).reached
    assert found.value is not None
    assert 0.3 < found.value < 2


@pytest.mark.parametrize("refused", [False, True])
def test_decoding_says_what_refuses_it(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: Any, k: Any, v: Any) -> None:
        if refused and k.dtype != q.dtype:
            raise TypeError("key: expected float32, got bfloat16")

    monkeypatch.setattr(half, "KEYS", 64)
    monkeypatch.setattr(half, "scaled_dot_product_attention", attend)
    found = reach(choose(["half-decode"], "half")[0], a_run()).reached
    assert (found.value is None) == refused
    assert found.note == ("refused: key: expected float32, got bfloat16" if refused else "")


# the machine


def test_a_kernel_set_is_put_back() -> None:
    before = _native.isa()

    def fail() -> None:
        with machine.kernel_set("baseline"):
            assert _native.isa() == "baseline"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert _native.isa() == before


def test_sets_for_half_precision_multiply_float32_as_others_do() -> None:
    assert set(native.FLOAT32) == set(half.SETS)
    assert set(native.FLOAT32.values()) <= set(native.ISAS)
    for name, of in native.FLOAT32.items():
        if of in _native.available_isas():
            assert native.fma_rate(name, 0.001, 1) > 1e8


def test_instructions_are_the_system_s(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "Path", lambda name: info)
    assert machine.instructions() == []
    info.write_text("model name\t: p\nFlags\t\t: fpu amx_bf16 avx2 avx512f\n")
    assert machine.instructions() == ["avx2", "avx512f", "amx_bf16"]
    info.write_text("Features\t: fp asimd bf16\n")
    assert machine.instructions() == ["asimd", "bf16"]


# the run


def test_a_run_of_the_half_face(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.set_threads", lambda threads: None)
    run(face="half", cases=[Case(TINY, INFER)], targets=["half-worst"], plan=QUICK)
    text = capsys.readouterr().out
    assert "1 cells, bfloat16" in text
    assert "torch compiled did not run in 1 cells: not in a quick run" in text
    assert "half-worst" in text


def test_the_command_line_says_what_half_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.__main__.installed", lambda package: None)
    with pytest.raises(SystemExit):
        main(["--face", "half"])
    assert "half needs ml_dtypes" in capsys.readouterr().err


# its tables


def test_a_table_says_why_a_row_was_not_measured() -> None:
    told = {"bound": 1.6, "at_most": False, "what": "w", "granted_processor_time": 1.0}
    rows = [
        told | {"name": "amx-train", "value": None, "note": "no amx", "verdict": "not measured"},
        told | {"name": "half-mean", "value": 1.7, "note": "n", "verdict": "met"},
    ]
    found = {
        "machine": {
            "processor": "p",
            "isa": "neon",
            "threads": 1,
            "date": "2026-01-02",
            "versions": {"torch": "2", "numpy": "2"},
        },
        "settings": {"seconds_for_a_cell": 12.0, "quick": False},
        "granted_processor_time": 1.0,
        "targets": rows,
        "cells": [],
    }
    text = tables.targets({"half": found}, "half")
    assert "| – | not measured: no amx |" in text
    assert "| ≥ 1.60x | 1.70x | met |" in text


def test_peers_are_told_beside_ours() -> None:
    def told(seconds: dict[str, float], granted: float, shape: Shape) -> dict[str, Any]:
        size = (shape.batch, shape.length, shape.embed_dim, shape.num_heads)
        return {
            "shape": dict(zip("NLEH", size, strict=True)),
            "mode": "infer",
            "seconds": {name: {"median": each} for name, each in seconds.items()},
            "granted_processor_time": granted,
            "absent": {} if "openvino" in seconds else {"openvino": "not installed"},
        }

    shapes = [case.shape for case in GRID[::9]]
    cells = [
        told({OURS: 2.0, TORCH: 3.0, "openvino": 1.0}, 1.0, shapes[0]),
        told({OURS: 2.0, TORCH: 3.0}, 1.0, shapes[1]),
        told({OURS: 2.0, TORCH: 3.0}, 0.5, shapes[2]),
    ]
    heading, _, *rows, _, closing = tables.peers({"half": {"cells": cells}}).splitlines()
    assert closing == "Did not run everywhere: openvino (not installed)."
    assert heading == "| (N, L, E, H) | torch | openvino |"
    assert [row.split(" | ", 1)[1] for row in rows] == [
        "1.50 | 0.50 |",
        "1.50 | – |",
        "busy | – |",
    ]
