"""`multihead bench`: fair, honest about a busy machine, and what it writes."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from command_line import run
from multihead.cli import bench, main
from multihead.cli.bench import compare, contenders, measure, process, worker
from multihead.cli.bench.page import page
from multihead.cli.bench.problem import Problem, Shape
from multihead.cli.elements import DTYPES

SMALL = ("bench", "--shape", "2,40,16,2", "--seconds", "0.5", "--threads", "1")


def cell(name: str, granted: float, **times: float) -> dict[str, Any]:
    """A cell as the worker writes it; times in milliseconds."""
    found = {who: {"median_ms": t, "fastest_ms": t, "rounds": 3} for who, t in times.items()}
    return {
        "shape": [2, 40, 16, 2],
        "pass": name,
        "granted": granted,
        "times": found,
        "absent": {"JAX": "needs jax"},
    }


def measured(granted: float, ours: float = 2.0) -> list[dict[str, Any]]:
    """The cells of a run."""
    return [
        cell("forward", granted, multihead=ours, torch=3.0),
        cell("training", granted, multihead=2 * ours, torch=5.0),
    ]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a quiet machine, without the time that it takes."""
    monkeypatch.setattr(process, "measure", lambda task, tell: measured(1.0))


@pytest.mark.timeout(300)
def test_all_who_are_installed_are_measured_in_a_pipe() -> None:
    done = run(*SMALL, COLUMNS="60", timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert all(len(line) <= 60 for line in done.stdout.splitlines())
    time = r"[\d.]+ ms( +([\d.]+x|busy))?"
    for who in ("multihead", "torch", "NumPy"):
        assert re.search(rf"^{who} +{time} +{time}$", done.stdout, re.M), done.stdout
    assert re.search(rf"^ONNX Runtime +{time} +-$", done.stdout, re.M)
    assert "ONNX Runtime: no backward." in done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("without", ["torch", "rich"])
def test_json_says_machine_times_and_who_is_absent(without: str) -> None:
    done = run(*SMALL, "--json", "--dtype", "float64", without=without, timeout=280)
    found = json.loads(done.stdout)
    assert (found["threads"], found["dtype"], len(found["cells"])) == (1, "float64", 2)
    assert found["machine"]["processor"]
    for each in found["cells"]:
        assert each["shape"] == [2, 40, 16, 2]
        assert 0 < each["granted"] <= 1
        assert each["times"]["NumPy"]["median_ms"] >= each["times"]["NumPy"]["fastest_ms"] > 0
        assert each["absent"]["ONNX Runtime"] in ("does not compute float64", "not installed")


@pytest.mark.parametrize("dtype", DTYPES)
def test_contenders_compute_the_same(dtype: str) -> None:
    lines: list[dict[str, Any]] = []
    task = {
        "shapes": [(2, 33, 16, 2)],
        "dtype": dtype,
        "threads": 1,
        "seconds": 0.01,
        "contenders": ["multihead", "torch", "NumPy", "ONNX Runtime"],
    }
    worker.work(task, lines.append)
    forward, training = (line["cell"] for line in lines if "cell" in line)
    assert {"multihead", "torch"} <= set(forward["times"])
    assert {"multihead", "torch"} <= set(training["times"])
    assert ("NumPy" in training["times"]) == (dtype in ("float32", "float64"))
    done = [line["done"] for line in lines if "done" in line]
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_who_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of(Shape(2, 5, 8, 2), "float32", 1)
    steps, absent = contenders.enter(problem, ["multihead", "NumPy"])
    assert absent == {}
    wrong = steps["NumPy"]._replace(forward=lambda: (np.zeros((2, 5, 8)),))
    found = worker.Cell("forward", "float32", 0.01, 1).measure(
        {"multihead": steps["multihead"], "NumPy": wrong}, lambda done: None
    )
    assert set(found["times"]) == {"multihead"}
    assert found["absent"] == {"NumPy": "other results, by 1e+00"}


def test_an_import_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = contenders.Contender("broken", "nothing_of_this_name", (), ("float32",))
    missing = contenders.Contender("missing", "by_us", ("no_such_package",), ("float32",))
    monkeypatch.setattr(contenders, "CONTENDERS", (broken, missing))
    problem = Problem.of(Shape(1, 2, 4, 1), "float32", 1)
    steps, absent = contenders.enter(problem, ["broken", "missing"])
    assert steps == {}
    assert absent["missing"] == "not installed"
    assert absent["broken"].startswith("ModuleNotFoundError: ")


def test_steps_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BLOCK", 0.0)
    turns: list[str] = []
    steps = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    times, share = measure.alternate(steps, 1e-9, 1, lambda done: None)
    assert turns == list("abccbaabc")
    assert [len(each) for each in times.values()] == [3, 3, 3]
    assert 0 < share <= 1


def test_the_share_of_the_machine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "thread_time", lambda: time.perf_counter() / 2)
    assert measure.granted(2) == pytest.approx(0.5, abs=0.05)


def test_a_busy_machine_gets_no_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [*measured(0.7)[:1], *measured(0.6)[1:]]
    monkeypatch.setattr(process, "measure", lambda task, tell: cells)
    assert main([*SMALL]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^torch +3\.00 ms +busy +5\.00 ms +busy$", said, re.M)
    assert "1.50x" not in said
    assert "The machine was busy in 2 of 2 measurements" in said
    assert "got down to 60% of the processors" in " ".join(said.split())


def test_a_quiet_machine_gets_ratios(quiet: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^torch +3\.00 ms +1\.50x +5\.00 ms +1\.25x$", said, re.M)
    assert "busy" not in said


def test_a_blas_that_was_told_a_core_is_not_told_so_in_the_process_that_measures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    found = process.environment(3)
    assert "OPENBLAS_CORETYPE" not in found
    assert {found[name] for name in process.THREADS} == {"3"}


@pytest.mark.timeout(60)
def test_a_process_that_fails_is_bad_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULTIHEAD_ISA", "sse9")
    assert main([*SMALL]) == 1
    said = capsys.readouterr().out.split()
    assert said[:2] == ["Bad:", "the"]
    assert said[-2:] == ["got", "'sse9'"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "2,40,16"], "expected four integers of at least 1, N,L,E,H, got '2,40,16'"),
        (["--shape", "2,40,16,3"], "expected a width E that the heads H divide"),
        (["--seconds", "0"], "expected a number of seconds above 0, got '0'"),
        (["--threads", "many"], "expected an integer of at least 1, got 'many'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--plot", "chart.jpg"], "expected a name that ends in .png or .svg, got 'chart.jpg'"),
        (["--html", "/nowhere/x.html"], "expected a file in a folder that can be written"),
        (["--compare", "/nowhere.json"], "cannot read '/nowhere.json': No such file"),
        (["--compare", __file__], "expected a file that multihead bench --json wrote"),
    ],
)
def test_wrong_words_are_told_before_anything_is_measured(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench.machine, "version_of", lambda name: None)
    with pytest.raises(SystemExit):
        main(["bench", "--plot", str(tmp_path / "x.png")])
    assert 'pip install "multihead[plot]"' in capsys.readouterr().err


@pytest.mark.parametrize(("name", "start"), [("x.png", b"\x89PNG"), ("x.svg", b"<?xml")])
def test_a_plot_is_of_the_kind_of_its_name(
    name: str, start: bytes, quiet: None, tmp_path: Path
) -> None:
    file = tmp_path / name
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text, not as outlines
        assert main([*SMALL, "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(start)
    if name.endswith("svg"):
        shown = file.read_text()
        assert all(text in shown for text in ("3.00 ms  1.50x", "5.00 ms  1.25x", "(2, 40, 16, 2)"))


def test_the_page_is_whole_and_refers_to_nothing_outside(quiet: None, tmp_path: Path) -> None:
    file = tmp_path / "x.html"
    assert main([*SMALL, "--html", str(file)]) == 0
    text = file.read_text()
    assert not re.search(r"(src|href)=|url\(|@import|https?://", text)
    assert 'name="viewport"' in text
    charts = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]
    assert len(charts) == 2
    bars = [float(bar.attrib["width"]) for bar in charts[0].iter("rect")]
    assert bars[0] / bars[1] == pytest.approx(2 / 3, rel=1e-2)
    assert "<td>torch</td><td>3.00 ms</td><td>1.50x</td>" in text
    assert "needs jax" in text


def test_the_page_shows_text_as_text() -> None:
    document = {
        "machine": {"processor": "<b>&"},
        "isa": "x",
        "threads": 1,
        "dtype": "float32",
        "versions": {"multihead": "0"},
        "date": "today",
        "cells": measured(1.0),
    }
    assert "&lt;b&gt;&amp;" in page(document)


@pytest.mark.parametrize(
    ("ours", "granted", "verdict", "said"),
    [
        (1.0, 1.0, "slower", "Slower by more than 10%: 2 of 2."),
        (2.1, 1.0, "same", "Slower by more than 10%: none of 2."),
        (4.0, 1.0, "faster", "Slower by more than 10%: none of 2."),
        (1.0, 0.5, "busy", "2 of 2 are not judged: the machine was busy"),
    ],
)
def test_an_earlier_run_is_compared_and_the_status_stays_good(
    ours: float,
    granted: float,
    verdict: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    monkeypatch.setattr(process, "measure", lambda task, tell: measured(granted, ours))
    assert main([*SMALL, "--json", str(old)]) == 0
    capsys.readouterr()
    monkeypatch.setattr(process, "measure", lambda task, tell: measured(1.0))
    assert main([*SMALL, "--compare", str(old), "--json", str(new)]) == 0
    assert said in capsys.readouterr().out
    found = json.loads(new.read_text())["compared"]
    assert [each["verdict"] for each in found] == [verdict] * 2
    assert found[0]["ratio"] == round(2 / ours, 3)


def test_another_machine_is_named(quiet: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    old = document | {"threads": 64, "machine": {"processor": "Z80"}}
    document["compared"] = compare.compared(document, old)
    compare.write(bench.Console(), document, old)
    said = capsys.readouterr().out
    assert "The earlier run had threads 64, this one 1." in said
    assert "another machine: Z80" in said
