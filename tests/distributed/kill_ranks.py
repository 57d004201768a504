"""Kills a rank of a training run again and again: ``python tests/distributed/kill_ranks.py``.

After each kill all other ranks have to end in time and not with 0, and the checkpoint has to be one
that was written whole. The next run resumes from it, by turns on gloo and on MPI. In the end every
loss that any of them gave has to be, bit for bit, that of a run which nobody interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable

import launching
import training

from multihead.distributed import threads

PROGRAM = launching.HERE / "training.py"
BEGUN = re.compile(r"rank (\d+) pid (\d+) begins")
SAID = re.compile(r"((?:step|state) \d+): ([-+.\w]+)")
TIMEOUT = 5.0  # of the communicator, seconds
START = 90.0  # seconds to start in, on a machine that is busy
MORE = 10.0  # seconds beyond a timeout, for the same reason
STEPS = 100_000  # more than are reached


def wait_until(what: str, found: Callable[[], bool], seconds: float) -> float:
    """Return the seconds until something is so, or raise."""
    began = time.monotonic()
    while not found():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"{what}: not in {seconds} s")
        time.sleep(0.005)
    return time.monotonic() - began


class Run:
    """A training run of several processes, whichever way they are started."""

    def __init__(
        self,
        size: int,
        path: pathlib.Path,
        steps: int,
        forks: launching.Forks | None,
    ) -> None:
        self.size, self.forks, self.folder = size, forks, path.parent
        for file in self.folder.glob("*.txt"):
            file.unlink()
        transport = "mpi" if forks is None else "gloo"
        arguments = [transport, str(path), str(steps), str(TIMEOUT)]
        if forks is None:
            command = [*launching.command("mpi", size), str(PROGRAM), *arguments]
            self.job = launching.Job(command, self.folder / "said.txt")
        else:
            self.started = forks.start(size, arguments, self.folder)

    @property
    def said(self) -> str:
        files = sorted(self.folder.glob("*.txt"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    @property
    def pids(self) -> dict[int, int]:
        return {int(rank): int(pid) for rank, pid in BEGUN.findall(self.said)}

    def codes(self, seconds: float) -> list[int]:
        """Codes of the processes that end in so many seconds, of mpiexec for all of its own."""
        if self.forks is not None:
            return list(self.forks.wait(self.started, seconds).values())
        with contextlib.suppress(Exception):
            return [self.job.process.wait(seconds)]
        return []

    def kill(self) -> None:
        if self.forks is not None:
            self.forks.kill(self.started)
        else:
            self.job.kill()


def there(pid: int) -> bool:
    """Whether a process runs."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def kill_once(run: Run, dice: random.Random) -> str:
    """Kill one rank at a random moment, see all others end, and say how it went."""
    wait_until("all ranks begin", lambda: len(run.pids) == run.size, START)
    rank, steps, late = dice.randrange(run.size), dice.randrange(7), dice.random() ** 2 * 0.1
    wait_until("steps are made", lambda: len(re.findall("step .*:", run.said)) >= steps, START)
    time.sleep(late)
    pids = run.pids
    os.kill(pids[rank], signal.SIGKILL)
    began = time.monotonic()
    codes = run.codes(TIMEOUT + MORE)
    wait_until("ranks end", lambda: not any(map(there, pids.values())), MORE)
    seconds = time.monotonic() - began
    expected = 1 if run.forks is None else run.size
    if len(codes) < expected or 0 in codes:
        raise AssertionError(f"codes {codes}")
    return f"rank {rank} after {steps} steps: codes {codes}, {seconds:.1f} s"


def compare(losses: dict[str, set[str]], whole: dict[str, str]) -> None:
    """See that all that was said is what an uninterrupted run says."""
    for what, values in losses.items():
        if values != {whole[what]}:
            raise AssertionError(f"{what}: {values}, and {whole[what]} without a kill")


def uninterrupted(size: int, path: pathlib.Path, steps: int) -> dict[str, str]:
    """What a run says that nobody kills; its ranks are threads."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        threads.run(size, lambda ranks: training.train(ranks, path, steps))
    return dict(SAID.findall(said.getvalue()))


def kill_ranks(
    kills: int,
    size: int,
    transports: list[str],
    folder: pathlib.Path,
    dice: random.Random,
) -> str:
    """Kill so many ranks and compare, or raise; say in a line what was done."""
    path, losses, forks = folder / "checkpoint.safetensors", dict[str, set[str]](), None
    before = 0
    if "gloo" in transports:
        forks = launching.Forks(PROGRAM)
    run = None
    try:
        for kill in range(kills + 1):  # the last run is left alone
            transport = transports[kill % len(transports)]
            last = kill == kills
            steps = before + training.EVERY + 1 if last else STEPS
            run = Run(size, path, steps, forks if transport == "gloo" else None)
            if last:
                if set(run.codes(START)) != {0}:
                    raise AssertionError("the last run fails, or does not end")
            else:
                how = kill_once(run, dice)
                print(f"{kill + 1}: {transport}, {how}", flush=True)
            for what, value in SAID.findall(run.said):
                losses.setdefault(what, set()).add(value)
            if path.exists():
                done, state = training.load(path)
                if done < before:
                    raise AssertionError(f"{done} steps in the checkpoint after {before}")
                losses.setdefault(f"state {done}", set()).add(training.digest(state))
                before = done
    except AssertionError as error:
        raise AssertionError(f"{error}: {'' if run is None else run.said[-4000:]}") from None
    finally:
        if run is not None:
            run.kill()
        if forks is not None:
            forks.end()
    reached = max(int(x.split()[1]) for x in losses) + 1
    reached += -reached % training.EVERY
    whole = uninterrupted(size, folder / "whole.safetensors", reached)
    whole[f"state {before}"] = min(losses[f"state {before}"])  # it ends where no other does
    compare({x: y for x, y in losses.items() if x in whole}, whole)
    left = len(list(folder.glob(".multihead-*.tmp")))
    return f"{kills} kills, {len(losses)} losses and states compared, {left} files left unnamed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    transports = [x for x in ("gloo", "mpi") if not launching.lacking(x)]
    print(f"--seed {options.seed}, {options.ranks} ranks, by turns on {' and '.join(transports)}")
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        print(kill_ranks(options.kills, options.ranks, transports, pathlib.Path(folder), dice))


if __name__ == "__main__":
    main()
