"""The command line in processes of its own: in a pipe, and in a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

NOTHING = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "MULTIHEAD_ISA", "MULTIHEAD_NUM_THREADS")
BARE = """
import sys
sys.modules[{!r}] = None
from multihead.cli import check, main
check.SECONDS = 100.0  # on a busy machine, too
sys.exit(main())
"""


def surroundings(**environment: str) -> dict[str, str]:
    """The environment, without what the command line reads but for what is given."""
    kept = {name: value for name, value in os.environ.items() if name not in NOTHING}
    return kept | {"PYTHONWARNINGS": "error", "TERM": "xterm"} | environment


def words(*arguments: str, without: str = "") -> list[str]:
    """The command, with an import that fails if one is named."""
    start = ["-c", BARE.format(without)] if without else ["-m", "multihead"]
    return [sys.executable, *start, *arguments]


def run(
    *arguments: str, without: str = "", timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a pipe."""
    return subprocess.run(
        words(*arguments, without=without),
        capture_output=True,
        text=True,
        env=surroundings(**environment),
        timeout=timeout,
    )


def run_in_terminal(*arguments: str, without: str = "", **environment: str) -> str:
    """What a command writes to a terminal, all of it."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        words(*arguments, without=without),
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
        env=surroundings(**environment),
    )
    os.close(its)
    found, end = b"", time.monotonic() + 100
    try:
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.5)[0]:
                try:
                    found += os.read(ours, 65536)
                except OSError:  # the other side is closed
                    break
        assert process.wait(timeout=20) == 0, found
    finally:
        process.kill()
        os.close(ours)
    return found.decode()
