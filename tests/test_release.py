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


def test_a_wheel_holds_the_packages_files_and_no_others() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from wheel_contents import differences
    finally:
        sys.path.pop(0)
    tracked = ["multihead/__init__.py", "multihead/maps/page.css"]
    built = ["multihead/_native.*.so", "multihead-*.dist-info/WHEEL"]
    right = {*tracked, "multihead/_native.abi3.so", "multihead-0.1.0.dist-info/WHEEL"}
    assert differences(right, tracked, built) == []
    less, more = right - {"multihead/maps/page.css"}, right | {"tests/test_release.py"}
    assert differences(less, tracked, built) == ["lacks multihead/maps/page.css"]
    assert differences(more, tracked, built) == ["has tests/test_release.py"]
    two = right | {"multihead/_native.cpython-311-x86_64-linux-gnu.so"}
    assert differences(two, tracked, built) == ["has 2 of multihead/_native.*.so"]
