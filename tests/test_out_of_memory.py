"""Running out of memory is a MemoryError that changes nothing, at every allocation in turn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import out_of_memory

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets allocations fail."""
    library = tmp_path_factory.mktemp("heap") / "failing_heap.so"
    source = HERE / "native" / "failing_heap.cpp"
    compiler = os.environ.get("CXX", "c++").split()
    command = [*compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    return library


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", [case.__name__ for case in out_of_memory.CASES])
def test_every_allocation_may_fail(case: str, heap: Path) -> None:
    done = subprocess.run(
        [sys.executable, "out_of_memory.py", case],
        cwd=HERE,
        env=os.environ | {"LD_PRELOAD": str(heap), "MULTIHEAD_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 5
