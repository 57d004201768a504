"""The example on handwritten digits in flax: it reads them, and says the same each time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("flax")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "jax_digits.py"


def run(*options: str) -> str:
    """Run the command of the example and return what it prints."""
    command = [sys.executable, str(EXAMPLE), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_training_reaches_97_percent() -> None:
    printed = run("--seed", "1")
    found = re.search(r"test accuracy +([\d.]+)% after", printed)
    assert found, printed
    assert float(found[1]) > 97, printed


@pytest.mark.timeout(300)
def test_command_repeats_itself() -> None:
    first, second = (run("--epochs", "2") for _ in range(2))
    epochs = re.findall(r"^epoch +[12] +loss .*$", first, re.MULTILINE)
    assert len(epochs) == 2
    assert epochs == re.findall(r"^epoch +[12] +loss .*$", second, re.MULTILINE)


def test_no_epoch_is_refused() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE), "--epochs", "0"], capture_output=True)
    assert done.returncode == 2
    assert b"--epochs: expected at least 1, got 0" in done.stderr
