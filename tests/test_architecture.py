"""The picture of the sources is the sources: docs/architecture.md cannot go stale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMED = re.compile(r"`((?:[a-z_]+/)*[a-z_0-9<>]+\.(?:h|cpp|py|txt))`")


def test_the_tree_is_that_of_the_sources() -> None:
    command = [sys.executable, "tools/tree.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_pictures_of_masks_are_the_oracle_s() -> None:
    command = [sys.executable, "tools/mask_pictures.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == 0


def test_every_file_that_the_page_names_exists() -> None:
    files = [
        path for folder in ("csrc", "src", "benchmarks") for path in (ROOT / folder).rglob("*")
    ]
    missing = []
    for name in NAMED.findall(PAGE):
        ending = re.escape(name).replace("<isa>", "[a-z0-9]+")
        if not any(re.search(f"/{ending}$", path.as_posix()) for path in [*files, ROOT / name]):
            missing.append(name)
    assert not missing
