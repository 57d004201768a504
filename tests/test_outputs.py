"""Outputs of commands in a page: run again, or kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[1] / "tools" / "outputs.py"
PAGE = """# Page

<!-- output: python -c "print(6 * 7)" -->
```text
old
```

<!-- output: python -c "print(5); print()" -->
```text
kept
```
"""


def run(page: Path, only: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), str(page), "--only", only]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_outputs_are_written_below_their_commands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert run(page, "6 * 7").returncode == 0
    assert page.read_text() == PAGE.replace("old", "42")
    assert run(page, "").returncode == 0
    assert page.read_text() == PAGE.replace("old", "42").replace("kept", "5")


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    done = run(page, "7 * 6")
    assert done.returncode == 2
    assert "expected a command with '7 * 6', got none" in done.stderr
    assert page.read_text() == PAGE
