"""The page of reliability tells what was found, and the faults planted for it can be planted."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAULTS = runpy.run_path(str(ROOT / "tools" / "planted_faults.py"))["FAULTS"]


def test_the_page_says_what_was_found() -> None:
    command = [sys.executable, "tools/reliability.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_a_fault_replaces_stands_once() -> None:
    for fault in FAULTS:
        assert (ROOT / fault.file).read_text().count(fault.right) == 1, fault.words
        assert fault.wrong != fault.right, fault.words


def test_the_file_tells_of_these_faults() -> None:
    told = json.loads((ROOT / "docs" / "planted.json").read_text())
    assert [(of["fault"], of["file"]) for of in told] == [(of.words, of.file) for of in FAULTS]
    assert len({of.file for of in FAULTS}) >= 20
