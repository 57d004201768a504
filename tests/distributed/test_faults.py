"""A rank that dies, hangs or sends something else: all others end, in time, and say why."""

from __future__ import annotations

import os
import pathlib
import random
import re
import signal
import time
from collections.abc import Iterator

import kill_ranks
import launching
import numpy as np
import pytest

pytestmark = pytest.mark.timeout(150)

PROGRAM = launching.HERE / "fault_rank.py"
TIMEOUT = 1.5  # of a communicator, seconds
MORE = 60.0  # for processes to start, on a machine that is busy

LOST = r"ConnectionError: rank {rank} lost rank \d: its process has ended, or the connection"
ENDS = rf"{LOST}|TimeoutError: rank {{rank}} waited"  # a process takes its time to end
LATE = r"TimeoutError: rank {rank} waited 1.5 s for rank [\d, ]*1"
MISTAKE = r"query: expected \(1, 2, 8\), as on rank 0, got \(1, 1, 8\) on rank 1"
DTYPE = r"dtype: expected \('float32', .*\), as on rank 0, got \('float64', .*\) on rank 1"
SIZES = r"ValueError: what rank \d sends: expected \d+ float64, got \d+ float64"
DTYPES = r"ValueError: what rank 1 sends: expected (\d+) float64, got \d+ float32"

# what the others raise, and the code of rank 1 on gloo
FAULTS = {
    "kill": (LOST, -9),
    "stop": (f"{LATE}|{LOST}", None),
    "hang": (f"{LATE}|{LOST}", None),
    "fail": (ENDS, 1),
    "fail_inside": (ENDS, 1),
    "leave": (ENDS, 3),
    "leave_at_once": (LOST, 5),
    "interrupt": (ENDS, -2),
    "shape": (f"ValueError: {MISTAKE}", 1),
    "dtype": (f"ValueError: {DTYPE}", 1),
    "larger": (f"{SIZES}|{LOST}", 1),
    "smaller": (f"{SIZES}|{LOST}", 1),
    "other_dtype": (f"{DTYPES}|{LOST}", 1),
}


@pytest.fixture(scope="module")
def forks() -> Iterator[launching.Forks]:
    if why := launching.lacking("gloo"):
        pytest.skip(why)
    made = launching.Forks(PROGRAM)
    yield made
    made.end()


def raised(said: str, rank: int) -> tuple[float, str]:
    """After how many seconds a rank raised what."""
    found = re.search(rf"rank {rank}: ([\d.]+) (.*)$", said, re.MULTILINE)
    assert found, said
    return float(found[1]), found[2]


TWICE = ("kill", "stop", "fail", "shape", "larger")
ON_GLOO = [(fault, size) for fault in FAULTS for size in (2, 4) if size == 4 or fault in TWICE]


@pytest.mark.parametrize(("fault", "size"), ON_GLOO)
def test_on_gloo_every_other_rank_raises(
    fault: str, size: int, forks: launching.Forks, tmp_path: pathlib.Path
) -> None:
    message, code_of_1 = FAULTS[fault]
    started = forks.start(size, ["gloo", fault, str(TIMEOUT)], tmp_path)
    others = [pid for rank, pid in enumerate(started) if rank != 1]
    codes = forks.wait(others if code_of_1 is None else started, TIMEOUT + MORE)
    forks.kill(started)
    said = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(size)]
    for rank, pid in enumerate(started):
        assert codes.get(pid) == (code_of_1 if rank == 1 else None if pid not in codes else 1), said
        if rank != 1:
            assert pid in codes, (rank, said)
            seconds, error = raised(said[rank], rank)
            assert re.match(message.format(rank=rank), error), error
            assert seconds < TIMEOUT + 1
            assert "gloo/" not in error


@pytest.mark.parametrize("fault", ["kill", "stop", "larger"])
def test_on_gloo_one_who_catches_it_ends_well(
    fault: str, forks: launching.Forks, tmp_path: pathlib.Path
) -> None:
    """It is told at once that nothing more can be exchanged, and can destroy its group."""
    started = forks.start(4, ["gloo", fault, str(TIMEOUT), "caught"], tmp_path)
    others = [pid for rank, pid in enumerate(started) if rank != 1]
    codes = forks.wait(others, TIMEOUT + MORE)
    forks.kill(started)
    for rank in (0, 2, 3):
        said = (tmp_path / f"rank{rank}.txt").read_text()
        assert codes.get(started[rank]) == 0, said
        _, error = raised(said, rank)
        assert f"rank {rank} again: rank {rank} failed before ({error})" in said


def test_on_gloo_ctrl_c_is_heard_by_one_who_waits(
    forks: launching.Forks, tmp_path: pathlib.Path
) -> None:
    started = forks.start(2, ["gloo", "hang", "100"], tmp_path)
    own = tmp_path / "rank0.txt"
    kill_ranks.wait_until("rank 0 waits", lambda: "goes on" in own.read_text(), MORE)
    time.sleep(0.5)
    os.kill(started[0], signal.SIGINT)
    codes = forks.wait(started[:1], MORE)
    forks.kill(started)
    assert codes == {started[0]: -signal.SIGINT}, own.read_text()
    assert "KeyboardInterrupt" in own.read_text()


@pytest.mark.parametrize("fault", ["fail", "kill"])
def test_under_torchrun_all_end(fault: str, tmp_path: pathlib.Path) -> None:
    """The launcher ends the others, if they do not end before."""
    if why := launching.lacking("gloo"):
        pytest.skip(why)
    arguments = [str(PROGRAM), "gloo", fault, str(TIMEOUT)]
    job = launching.Job([*launching.command("gloo", 2), *arguments], tmp_path / "said.txt")
    ended = job.wait(TIMEOUT + MORE)
    assert ended.codes != [0], ended.said
    assert fault == "kill" or "OverflowError: a mistake" in ended.said


# what rank 0 raises, or nothing where the job ends before it is late
ON_MPI = [
    ("kill", 2, ""),
    ("kill", 4, ""),
    ("stop", 4, LATE),
    ("hang", 2, LATE),
    ("fail", 2, ""),
    ("fail_inside", 4, ""),
    ("leave", 2, LATE),
    ("leave_at_once", 4, ""),
    ("interrupt", 2, ""),
    ("shape", 4, f"ValueError: {MISTAKE}"),
    ("larger", 2, SIZES),
    ("smaller", 2, SIZES),
    ("other_dtype", 2, DTYPES),
]


@pytest.mark.parametrize(("fault", "size", "message"), ON_MPI)
def test_on_mpi_the_job_ends(fault: str, size: int, message: str, tmp_path: pathlib.Path) -> None:
    timeout = TIMEOUT if message == LATE else MORE
    ended = on_mpi(size, [fault, str(timeout)], tmp_path)
    assert ended.codes != [0], ended.said
    if message:
        seconds, error = raised(ended.said, 0)
        assert re.match(message.format(rank=0), error), error
        assert seconds < TIMEOUT + 1
    else:
        assert "TimeoutError" not in ended.said
        assert "OverflowError: a mistake" in ended.said or not fault.startswith("fail")


def test_on_mpi_nobody_waits_for_one_who_never_comes(tmp_path: pathlib.Path) -> None:
    ended = on_mpi(2, ["absent", str(TIMEOUT)], tmp_path)
    assert ended.codes != [0]
    assert "TimeoutError: rank 0 waited 1.5 s for rank 1" in ended.said


@pytest.mark.parametrize("fault", ["hang", "larger"])
def test_on_mpi_one_who_catches_it_ends_the_job(fault: str, tmp_path: pathlib.Path) -> None:
    ended = on_mpi(2, [fault, str(TIMEOUT), "caught"], tmp_path)
    assert ended.codes != [0], ended.said
    _, error = raised(ended.said, 0)
    assert f"rank 0 again: rank 0 failed before ({error})" in ended.said


def on_mpi(size: int, arguments: list[str], folder: pathlib.Path) -> launching.Ended:
    if why := launching.lacking("mpi"):
        pytest.skip(why)
    command = [*launching.command("mpi", size), str(PROGRAM), "mpi", *arguments]
    return launching.Job(command, folder / "said.txt").wait(TIMEOUT + MORE)


@pytest.mark.parametrize("transport", ["gloo", "mpi"])
def test_a_killed_run_resumes(
    transport: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    """All its losses and checkpoints are those of a run that nobody kills."""
    if why := launching.lacking(transport):
        pytest.skip(why)
    dice = random.Random(int(rng.integers(2**31)))
    kill_ranks.kill_ranks(2, 2, [transport], tmp_path, dice)
