"""The example of a text that processes share: losses, bytes, memory and checkpoints."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_transports import launcher

from multihead.distributed.agreement import ROOM
from multihead.distributed.cost import Cluster, Scheme, Work, cost

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "long_context.py"
STEPS, LENGTH, WIDTH, BLOCKS = 4, 320, 64, 2
SMALL = ("--length", LENGTH, "--width", WIDTH, "--blocks", BLOCKS)
SECONDS = 120


class Ran(NamedTuple):
    """What a run printed, and the figures of its steps."""

    printed: str
    steps: list[dict[str, Any]]

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.steps]


def ran(transport: str, size: int, folder: Path, *options: Any) -> Ran:
    """Run the example, under a launcher if there are several processes."""
    start = [sys.executable] if size == 1 else launcher(transport, size)
    command = [*start, str(EXAMPLE), "--out", str(folder), *map(str, options)]
    quiet = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "MULTIHEAD_NUM_THREADS")
    paths = os.pathsep.join(x for x in sys.path if x and "tests" not in x)
    environment = {name: x for name, x in os.environ.items() if name not in quiet}
    with subprocess.Popen(
        command,
        env=environment | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            said, _ = process.communicate(timeout=20)
            pytest.fail(f"{transport} took more than {SECONDS} s: {said}")
    assert process.returncode == 0, said
    return Ran(said, json.loads((folder / "steps.json").read_text()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One process, without a launcher."""
    return ran("none", 1, tmp_path_factory.mktemp("alone"), "--steps", STEPS, *SMALL)


def parameters() -> int:
    """How many the model has."""
    keys = WIDTH // 4  # two heads of eight
    block = 2 * WIDTH + 2 * WIDTH * WIDTH + 2 * WIDTH * keys + 2 * WIDTH * (5 * WIDTH // 2)
    return 2 * 256 * WIDTH + BLOCKS * block + WIDTH


def theory(size: int, scheme: Scheme) -> int:
    """Bytes that a rank sends in a step: attention, what its layers agree on, and a sum."""
    work = Work(LENGTH, 1, 8, 2, WIDTH // 8, causal=True)
    agreed = (size - 1) * (ROOM + 16)
    attention = cost(work, Cluster(size, 1.0, 0.0, 1.0, 1.0), scheme).sent + agreed
    total = parameters() + 1  # gradients, and the loss
    part = total // size
    return BLOCKS * attention + 4 * (total - part + (size - 1) * part)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("transport", "size", "scheme"),
    [
        ("gloo", 2, "all_to_all"),
        ("gloo", 4, "ring"),
        ("mpi", 2, "ring"),
        ("mpi", 4, "ring"),
        ("mpi", 4, "all_to_all"),
    ],
)
def test_processes_learn_what_one_does_and_send_what_the_scheme_needs(
    transport: str, size: int, scheme: str, tmp_path: Path, alone: Ran
) -> None:
    found = ran(transport, size, tmp_path, "--steps", STEPS, "--scheme", scheme, *SMALL)
    assert found.losses == pytest.approx(alone.losses, rel=3e-6)
    assert found.losses[-1] < found.losses[0] - 0.1  # it learns
    shape = Scheme(size, 1) if scheme == "ring" else Scheme(1, size)
    for step in found.steps:
        # the longest part of a sum that does not divide evenly has an element more
        assert 0 <= step["sent"] - theory(size, shape) <= 4 * (size - 1)
    launched = "torchrun" if transport == "gloo" else "mpiexec"
    assert f"{launched}, {size} x 1 threads" in found.printed
    assert len(re.findall(r"^step +\d+ +loss", found.printed, re.M)) == STEPS  # of rank 0 alone


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("transport", "size"), [("gloo", 2), ("mpi", 3)])
def test_a_run_that_was_ended_goes_on_as_if_it_had_not_been(
    transport: str, size: int, tmp_path: Path
) -> None:
    whole = ran(transport, size, tmp_path / "whole", "--steps", 4, *SMALL)
    ran(transport, size, tmp_path / "parts", "--steps", 2, *SMALL)
    rest = ran(transport, size, tmp_path / "parts", "--steps", 4, "--resume", *SMALL)
    assert [step["step"] for step in rest.steps] == [3, 4]
    assert rest.losses == whole.losses[2:]
    assert not list((tmp_path / "parts").glob("*.tmp"))


@pytest.mark.timeout(300)
def test_memory_of_a_rank_halves_with_twice_the_ranks(tmp_path: Path) -> None:
    memory = []
    for size in (2, 4):
        options = ("--steps", 4, "--length", 8192, "--width", WIDTH, "--blocks", BLOCKS)
        found = ran("gloo", size, tmp_path / str(size), *options)
        # the first step makes gradients and the optimizer's state, which stay
        memory.append(statistics.median(step["memory"] for step in found.steps[1:]))
    assert memory[1] / memory[0] == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--length", 10**7, r"--length: the text has \d+ bytes, got 10000000"),
        ("--width", 100, "--width: expected a multiple of 8, got 100"),
        ("--steps", 0, "--steps: expected at least 1, got 0"),
    ],
)
def test_options_that_cannot_be_are_said_so(option: str, value: int, said: str) -> None:
    command = [sys.executable, str(EXAMPLE), option, str(value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.search(said, done.stderr)
