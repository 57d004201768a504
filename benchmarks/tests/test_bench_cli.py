"""The benchmark's command line, examples and native part."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks
from benchmarks import native
from benchmarks.__main__ import main
from benchmarks.measure import FULL
from multihead import _native

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    if not module.name.startswith("benchmarks.tests")
    # JAX has no versions for the oldest Pythons
    if not (module.name == "benchmarks.jax_calls" and importlib.util.find_spec("jax") is None)
)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        cwd=native.ROOT,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["benchmarks", *MODULES])
def test_examples_of_a_module_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "expected a number of at least 1, got 0"),
        (["--threads", "two"], "invalid"),
        (["--face", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["--budget", "0"], "expected seconds above 0, got 0"),
        (["--budget", "nan"], "expected seconds above 0, got nan"),
        (["--budget", "2", "--quick"], "not allowed with argument"),
        (["paint"], "unrecognized arguments: paint"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_budget_is_each_cell_s(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    monkeypatch.setattr(benchmarks, "run", lambda **given: plans.append(given["plan"]) or True)
    assert main([]) == main(["--budget", "2.5"]) == 0
    assert plans == [None, replace(FULL, budget=2.5, fewest=2)]


def test_a_file_that_cannot_be_written_stops_the_bench_before_it_starts(tmp_path: Path) -> None:
    done = run("--json", str(tmp_path / "missing" / "bench.json"))
    assert done.returncode == 2
    assert "bench.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_compiler_the_bench_says_so_before_it_starts(tmp_path: Path) -> None:
    done = run("--targets", "memory", PATH=str(tmp_path), CXX="")
    assert done.returncode == 2
    assert "needs a C++20 compiler, but found none" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_the_compiler_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "BUILD", tmp_path)
    (tmp_path / "wrong.cpp").write_text("#error not today\n")
    with pytest.raises(native.CompilerError, match=r"cannot compile wrong: .*not today"):
        native.build("wrong", [tmp_path / "wrong.cpp"], [])
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.cpp"]


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "BUILD", tmp_path / "build")
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    first = native.build("one", [source], [])
    with monkeypatch.context() as patched:
        patched.setattr(native.subprocess, "run", None)
        assert native.build("one", [source], []) == first
    source.write_text('extern "C" int one() { return 2; }\n')
    assert native.build("one", [source], []) != first


@pytest.mark.parametrize("isa", [isa for isa in _native.available_isas() if isa in native.ISAS])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_fma_rate_is_that_of_whole_vectors(isa: str, threads: int) -> None:
    assert 1e8 < native.fma_rate(isa, 0.01, threads) < 1e13


@pytest.mark.parametrize("threads", [1, 2])
def test_a_region_is_measured(threads: int) -> None:
    assert 0 < native.region_seconds(100, threads) < 1


def test_the_package_has_no_benchmark() -> None:
    assert importlib.util.find_spec("multihead.bench") is None
