"""The command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import multihead as mh
from multihead.cli import main


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multihead", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


def test_config_says_version_isa_and_threads() -> None:
    done = run("config", MULTIHEAD_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert mh.__version__ in done.stdout
    assert "2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["bench"], "invalid choice: 'bench'"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
