"""The stub of the native module says what the module has."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

STUB = Path(__file__).resolve().parents[1] / "src" / "multihead" / "_native.pyi"


def test_the_stub_is_what_nanobind_generates(tmp_path: Path) -> None:
    fresh = tmp_path / "_native.pyi"
    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-m", "multihead._native", "-o", str(fresh)],
        check=True,
        cwd=tmp_path,
    )
    # the trees, so that a formatter may touch the file, docstrings too
    ours, generated = (
        ast.dump(ast.parse(re.sub(r'"""\s*(.*?)\s*"""', r'"""\1"""', path.read_text(), flags=re.S)))
        for path in (STUB, fresh)
    )
    assert ours == generated, f"regenerate {STUB} with nanobind.stubgen"
