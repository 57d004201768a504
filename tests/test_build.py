"""How the library is built: which compilers, and what is said where one will not do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CMAKE = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")

pytestmark = pytest.mark.timeout(120)


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture
def gcc_11(tmp_path: Path) -> str:
    """This machine's GCC under a name that says it is version 11."""
    script = tmp_path / "g++-11"
    script.write_text('#!/bin/sh\nexec g++ -w -U__GNUC__ -D__GNUC__=11 "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_the_environment_refuses_an_old_compiler(tmp_path: Path, gcc_11: str) -> None:
    target = tmp_path / "environment"
    done = run(sys.executable, ROOT / "tools/environment.py", target, CXX=gcc_11)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "multihead needs GCC 12 or newer, or Clang 14 or newer, "
        f"not GCC 11 ({gcc_11}); name another: make CXX=clang++"
    )
    assert not target.exists()


def test_the_environment_refuses_a_compiler_that_is_not_there(tmp_path: Path) -> None:
    done = run(sys.executable, ROOT / "tools/environment.py", tmp_path / "e", CXX="no-such-c++")
    assert done.returncode == 1
    assert "GCC 12 or newer, or Clang 14 or newer, and there is no no-such-c++" in done.stderr


def test_cmake_refuses_an_old_compiler(tmp_path: Path, gcc_11: str) -> None:
    done = run(CMAKE, "-S", ROOT, "-B", tmp_path / "build", CXX=gcc_11)
    assert done.returncode != 0
    words = " ".join(done.stderr.split())
    assert "multihead needs GCC 12 or newer, or Clang 14 or newer, not GNU 11." in words
