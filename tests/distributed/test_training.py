"""Training over ranks that share sequences, in DDP and FSDP2: what one process does."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
import train_rank

HERE = pathlib.Path(__file__).parent
SECONDS = 100
BOUND = 1e-9  # of the largest entry, in float64


def started(size: int, folder: pathlib.Path) -> list[train_rank.Found]:
    """What so many ranks wrote."""
    paths = [str(HERE), str(HERE.parent), *sys.path]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MULTIHEAD_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    options = ["--standalone", f"--nproc-per-node={size}", str(HERE / "train_rank.py"), str(folder)]
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            said, _ = process.communicate(timeout=20)
            pytest.fail(f"{size} processes took more than {SECONDS} s: {said}")
    assert process.returncode == 0, said
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(size)]


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("size", "way"), [(2, "sequence"), (4, "mesh")])
def test_ranks_train_as_one_process_does(size: int, way: str, tmp_path: pathlib.Path) -> None:
    found, expected = started(size, tmp_path), train_rank.alone()
    for wrapper in ("DDP", "FSDP2"):
        for name, x in expected.items():
            key = f"{way} {wrapper} {name}"
            of_ranks = [one[key] for one in found]
            if name.startswith("loss"):  # each rank has its part of the mean
                of_ranks = [np.mean(of_ranks)]
            for y in of_ranks:
                assert np.abs(y - x).max() <= BOUND * np.abs(x).max(), key
