"""Starts ranks that are processes, sees how they end, and leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
ENVIRONMENT = {
    "MULTIHEAD_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), *sys.path])),
    # Open MPI: more ranks than cores, and root in a container
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


class Ended(NamedTuple):
    """How processes ended: their codes, what they said, and the seconds that it took."""

    codes: list[int]
    said: str
    seconds: float


def lacking(transport: str) -> str:
    """Say why ranks cannot be started, if so."""
    if transport == "gloo":
        return "" if find_spec("torch") else "no torch"
    if not find_spec("mpi4py"):
        return "no mpi4py"
    return "" if mpiexec() else "no mpiexec"


def mpiexec() -> str | None:
    """That of the environment's own MPI, which mpi4py loads, or the machine's."""
    beside = pathlib.Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def command(transport: str, size: int) -> list[str]:
    """What starts so many Pythons, to be followed by a program and its arguments."""
    if transport == "gloo":
        options = ["--standalone", f"--nproc-per-node={size}"]
        return [sys.executable, "-m", "torch.distributed.run", *options]
    return [str(mpiexec()), "-n", str(size), sys.executable, "-W", "error"]


def pids(text: str) -> list[int]:
    """Numbers of processes that said them."""
    return [int(pid) for pid in re.findall(r"\bpid (\d+)\b", text)]


class Job:
    """A launcher and what it has started, in a session of its own."""

    def __init__(self, command: list[str], output: pathlib.Path) -> None:
        self.output, self.began = output, time.monotonic()
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                command,
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, seconds: float) -> Ended:
        """Wait for the end, or raise TimeoutError; nothing is left running either way."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"ran for more than {seconds} s: {self.said[-4000:]}") from None
        finally:
            self.kill()
        return Ended([code], self.said, time.monotonic() - self.began)

    def kill(self) -> None:
        """End all of it; ranks that the launcher has put elsewhere have said their numbers."""
        for pid in [self.process.pid, *pids(self.said)]:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Forks:
    """Ranks on gloo that a process forks which has imported PyTorch once."""

    def __init__(self, program: pathlib.Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", str(program), "serve"],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._codes: dict[int, int] = {}
        self._started: list[int] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            if line.startswith("{"):
                told = json.loads(line)
                with self._changed:
                    if "started" in told:
                        self._started.append(told["started"])
                    else:
                        self._codes[told["ended"]] = told["code"]
                    self._changed.notify_all()

    def start(self, size: int, arguments: list[str], folder: pathlib.Path) -> list[int]:
        """Start ranks, and return the numbers of their processes; each writes to a file."""
        meeting = folder / f"meeting-{secrets.token_hex(4)}"
        first = len(self._started)
        assert self._server.stdin is not None
        for rank in range(size):
            environment = {"RANK": str(rank), "WORLD_SIZE": str(size), "MEETING": str(meeting)}
            job = {
                "arguments": arguments,
                "environment": environment,
                "output": str(folder / f"rank{rank}.txt"),
            }
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            with self._changed:
                if not self._changed.wait_for(lambda n=first + rank: len(self._started) > n, 60):
                    raise TimeoutError("no process was started in 60 s")
        return self._started[first:]

    def wait(self, started: list[int], seconds: float) -> dict[int, int]:
        """Return the codes of those that have ended when all have, or after so long."""
        with self._changed:
            self._changed.wait_for(lambda: all(pid in self._codes for pid in started), seconds)
            return {pid: self._codes[pid] for pid in started if pid in self._codes}

    def kill(self, started: list[int]) -> None:
        for pid in started:
            if pid not in self._codes:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill(self._started)
        self._server.kill()
        self._server.communicate()
