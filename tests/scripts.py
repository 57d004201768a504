"""Scripts in processes of their own, where a crash or a hang would take the tests with it."""

from __future__ import annotations

import os
import subprocess
import sys

SECONDS = 60


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script and return what it printed, however it ended."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def printed(code: str, *arguments: str, **environment: str) -> str:
    """What a script prints; it ends well and has nothing to complain of."""
    done = run(code, *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout
