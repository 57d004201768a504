"""Running out of memory is a MemoryError that changes nothing, at every allocation in turn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import out_of_memory

HERE = Path(__file__).parent
SMALL = ("construction", "loading", "ragged_arrays", "merged", "rotated")  # of few arrays
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library")


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets allocations fail."""
    library = tmp_path_factory.mktemp("heap") / "failing_heap.so"
    source = HERE / "native" / "failing_heap.cpp"
    compiler = os.environ.get("CXX", "c++").split()
    command = [
        *compiler,
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        str(source),
        "-o",
        str(library),
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=120)
    return library


def run(program: str, heap: Path, *arguments: str) -> str:
    """Run a program with the library preloaded; return what it prints."""
    done = subprocess.run(
        [sys.executable, program, *arguments],
        cwd=HERE,
        env=os.environ | {"LD_PRELOAD": str(heap), "MULTIHEAD_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    return done.stdout


@LINUX
@pytest.mark.timeout(240)
@pytest.mark.parametrize("group", out_of_memory.GROUPS)
def test_every_allocation_may_fail(
    group: str, heap: Path, record_property: Callable[[str, int], None]
) -> None:
    failed = [line.split() for line in run("out_of_memory.py", heap, group).splitlines()]
    assert len(failed) > 5
    for name, failures in failed:
        assert int(failures) > (0 if name in SMALL else 5), name
    record_property("allocations failed", sum(int(failures) for _, failures in failed))


@LINUX
@pytest.mark.timeout(240)
def test_threads_that_do_not_start_are_done_without(heap: Path) -> None:
    assert run("refused_threads.py", heap).split() == ["passed"]


@LINUX
@pytest.mark.timeout(240)
@pytest.mark.parametrize("face", ["numpy", "torch"])
def test_a_limit_of_memory_is_kept(face: str) -> None:
    done = subprocess.run(
        [sys.executable, "limited_memory.py", face],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    refused, done_within = map(int, done.stdout.split())
    assert refused > 0
    assert done_within > 0
