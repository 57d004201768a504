"""The example of a text that processes share: losses, bytes, memory and checkpoints."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import launching
import pytest

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
    if size > 1 and (why := launching.lacking(transport)):
        pytest.skip(why)
    start = [sys.executable] if size == 1 else launching.command(transport, size)
    folder.mkdir(parents=True, exist_ok=True)
    command = [*start, str(EXAMPLE), "--out", str(folder), "--threads", "1", *map(str, options)]
    ended = launching.Job(command, folder / "said.txt").wait(SECONDS)
    assert ended.codes == [0], ended.said
    return Ran(ended.said, json.loads((folder / "steps.json").read_text()))


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
    agreed = (size - 1) * (ROOM + 24)  # how many queries, keys and columns of a mask
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
        ("mpi", 4, "ring"),
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


def ranks_of(folder: Path) -> list[int]:
    """Processes of a run that have no children: those that train."""
    mine, parents = [], set()
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words, stat = status.read_bytes().split(b"\0"), (status.parent / "stat").read_text()
        except OSError:
            continue
        if str(folder).encode() in words and any(b"python" in word for word in words[:1]):
            mine.append(int(status.parent.name))
            parents.add(int(stat.rpartition(")")[2].split()[1]))
    return [pid for pid in mine if pid not in parents]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", ["gloo", "mpi"])
def test_a_run_of_which_a_process_was_killed_goes_on(transport: str, tmp_path: Path) -> None:
    if why := launching.lacking(transport):
        pytest.skip(why)
    start, folder = launching.command(transport, 2), tmp_path / "killed"
    folder.mkdir()
    options = map(str, (*SMALL, "--steps", 10_000, "--save", 2, "--timeout", 10))
    command = [*start, str(EXAMPLE), "--out", str(folder), "--threads", "1", *options]
    job = launching.Job(command, tmp_path / "said.txt")
    try:
        end = time.monotonic() + SECONDS
        while not re.search(r"^step +5 ", job.said, re.M):
            assert time.monotonic() < end, job.said
            assert job.process.poll() is None, job.said
            time.sleep(0.02)
        ranks = ranks_of(folder)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        ended = job.wait(60)
    finally:
        job.kill()
    assert ended.codes[0] != 0
    assert not ranks_of(folder)
    done = len(re.findall(r"^step +\d+ ", ended.said, re.M)) + 2
    rest = ran(transport, 2, folder, "--steps", done, "--save", 2, "--resume", *SMALL)
    assert rest.steps[0]["step"] > 4
    whole = ran(transport, 2, tmp_path / "whole", "--steps", done, *SMALL)
    assert rest.losses == whole.losses[rest.steps[0]["step"] - 1 :]
    assert not list(folder.glob("*.tmp"))


@pytest.mark.timeout(300)
def test_memory_of_a_rank_halves_with_twice_the_ranks(tmp_path: Path) -> None:
    memory = []
    for size in (2, 4):
        options = ("--steps", 3, "--length", 16384, "--width", WIDTH, "--blocks", BLOCKS)
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
