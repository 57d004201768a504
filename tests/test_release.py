"""One source of the version, and what a release needs beside the code."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import multihead as mh

ROOT = Path(__file__).resolve().parents[1]


def first(pattern: str, file: str) -> str:
    found = re.search(pattern, (ROOT / file).read_text(), re.M)
    assert found, (pattern, file)
    return found[1]


def test_the_version_is_one() -> None:
    version = first(r'^version = "(.*)"', "pyproject.toml")
    assert first(r"^version: (.*)$", "CITATION.cff") == version
    assert metadata.version("multihead") == mh.__version__ == version
    assert not re.search(r"[0-9]+\.[0-9]+\.[0-9]+", (ROOT / "CMakeLists.txt").read_text())


def test_wheels_are_built_for_every_python_that_is_taken() -> None:
    oldest = first(r'^requires-python = ">=3\.(\d+)"', "pyproject.toml")
    built = first(r'^build = "(.*)"', "pyproject.toml").split()
    named = sorted({int(x) for x in re.findall(r"cp3(\d+)-", " ".join(built))})
    assert named == list(range(int(oldest), named[-1] + 1))
    assert named[-1] >= sys.version_info.minor
