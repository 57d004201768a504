"""Ranks that are processes, on gloo and on MPI: the bits and bytes of ranks that are threads."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import rank

from multihead.distributed import threads

HERE = pathlib.Path(__file__).parent
SECONDS = 100
Results = list[dict[str, np.ndarray]]


def launcher(transport: str, size: int) -> list[str]:
    """The command that starts so many processes, or skip."""
    if transport == "gloo":
        if find_spec("torch") is None:
            pytest.skip("no torch")
        options = ["--standalone", f"--nproc-per-node={size}"]
        return [sys.executable, "-m", "torch.distributed.run", *options]
    if find_spec("mpi4py") is None:
        pytest.skip("no mpi4py")
    beside = pathlib.Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("no mpiexec")
    return [found, "-n", str(size), sys.executable, "-W", "error"]


def started(transport: str, size: int, folder: pathlib.Path) -> Results:
    """What the ranks wrote."""
    paths = [str(HERE), str(HERE.parent), *sys.path]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MULTIHEAD_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [*launcher(transport, size), str(HERE / "rank.py"), transport, str(folder)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            said, _ = process.communicate(timeout=20)
            pytest.fail(f"{transport} took more than {SECONDS} s: {said}")
    assert process.returncode == 0, said
    return [dict(np.load(folder / f"{transport}{r}.npz")) for r in range(size)]


@pytest.fixture(scope="module")
def on_threads() -> Callable[[int], Results]:
    """What threads give, once for each number of them."""
    known: dict[int, Results] = {}

    def of(size: int) -> Results:
        if size not in known:
            known[size] = threads.run(
                size, lambda ranks: rank.every_bit(rank.on_threads(ranks)), timeout=60
            )
        return known[size]

    return of


@pytest.mark.timeout(240)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("transport", ["gloo", "mpi"])
def test_bits_and_bytes_do_not_depend_on_the_transport(
    transport: str, size: int, tmp_path: pathlib.Path, on_threads: Callable[[int], Results]
) -> None:
    found = started(transport, size, tmp_path)
    for number, (here, there) in enumerate(zip(found, on_threads(size), strict=True)):
        late = str(here.pop("late"))
        waited = (
            rf"TimeoutError: rank {number} waited 2 s for rank .*1|ConnectionError: rank {number} "
        )
        assert re.match("^$" if number == 1 else waited, late), late
        mistake = str(here.pop("mistake"))
        assert mistake == "query: expected (1, 2, 4), as on rank 0, got (1, 2, 8) on rank 1"
        assert here.keys() == there.keys()
        for name, x in there.items():
            assert np.array_equal(here[name], x), name
