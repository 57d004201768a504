"""How the library is built: which compilers, and as a C library on a machine without Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apple_library import write_functions, write_header

ROOT = Path(__file__).resolve().parents[1]
CMAKE = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")

pytestmark = pytest.mark.timeout(120)


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env=os.environ | environment,
    )


def done(*command: str | Path, **environment: str) -> str:
    """What a command prints that must succeed."""
    process = run(*command, **environment)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture
def gcc_11(tmp_path: Path) -> str:
    """This machine's GCC under a name that says it is version 11."""
    script = tmp_path / "g++-11"
    script.write_text('#!/bin/sh\nexec g++ -w -U__GNUC__ -D__GNUC__=11 "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_the_environment_refuses_an_old_compiler(tmp_path: Path, gcc_11: str) -> None:
    target = tmp_path / "environment"
    process = run(sys.executable, ROOT / "tools/environment.py", target, CXX=gcc_11)
    assert process.returncode == 1
    assert process.stderr.strip() == (
        "multihead needs GCC 12 or newer, or Clang 14 or newer, "
        f"not GCC 11 ({gcc_11}); name another: make CXX=clang++"
    )
    assert not target.exists()


def test_the_environment_refuses_a_compiler_that_is_not_there(tmp_path: Path) -> None:
    process = run(sys.executable, ROOT / "tools/environment.py", tmp_path / "e", CXX="no-such-c++")
    assert process.returncode == 1
    assert "GCC 12 or newer, or Clang 14 or newer, and there is no no-such-c++" in process.stderr


def test_cmake_refuses_an_old_compiler(tmp_path: Path, gcc_11: str) -> None:
    process = run(CMAKE, "-S", ROOT, "-B", tmp_path / "build", CXX=gcc_11)
    assert process.returncode != 0
    words = " ".join(process.stderr.split())
    assert "multihead needs GCC 12 or newer, or Clang 14 or newer, not GNU 11." in words


WITHOUT_PYTHON = [f"-DCMAKE_DISABLE_FIND_PACKAGE_Python{n}=ON" for n in ("", "3")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where plain CMake installs the C library, shared and static, from one build."""
    build = tmp_path_factory.mktemp("build")
    prefixes = {}
    for kind, shared in (("shared", "ON"), ("static", "OFF")):
        prefix = prefixes[kind] = tmp_path_factory.mktemp(kind)
        options = [*WITHOUT_PYTHON, f"-DBUILD_SHARED_LIBS={shared}", "-DCMAKE_BUILD_TYPE=Debug"]
        options += [f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DMULTIHEAD_WERROR=ON"]
        done(CMAKE, "-S", ROOT, "-B", build, *options)
        done(CMAKE, "--build", build, "--parallel", "2")
        done(CMAKE, "--install", build)
    return prefixes


def version() -> str:
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert found
    return found[1]


def library_folder(prefix: Path) -> Path:
    return next(prefix.rglob("libmultihead.*")).parent


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_the_c_library_is_installed_without_python(installed: dict[str, Path], kind: str) -> None:
    files = {path.name for path in installed[kind].rglob("*") if path.is_file()}
    suffix = {"static": ".a", "shared": ".dylib" if sys.platform == "darwin" else ".so"}[kind]
    assert f"libmultihead{suffix}" in files
    assert {"bnns.h", "multihead.pc", "multihead-config.cmake"} <= files
    assert not any(name.startswith("_native") or name.endswith(".py") for name in files)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_a_c_program_finds_it_through_pkg_config(
    installed: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    folder = library_folder(installed[kind])
    found = {"PKG_CONFIG_PATH": str(folder / "pkgconfig")}
    assert done("pkg-config", "--modversion", "multihead", **found).strip() == version()
    flags = done("pkg-config", "--cflags", "--libs", "multihead", **found).split()
    program = tmp_path / "train"
    source = ROOT / "examples/bnns_train.c"
    done("cc", source, *flags, "-lm", f"-Wl,-rpath,{folder}", "-o", program)
    assert len(done(program).splitlines()) == 6


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_a_c_program_finds_it_through_cmake(
    installed: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\n"
        "project(train LANGUAGES C)\n"
        f"find_package(multihead {version()} REQUIRED)\n"
        f"add_executable(train {ROOT}/examples/bnns_train.c)\n"
        "target_link_libraries(train PRIVATE multihead::multihead m)\n"
    )
    build = tmp_path / "build"
    done(CMAKE, "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={installed[kind]}")
    done(CMAKE, "--build", build)
    assert len(done(build / "train").splitlines()) == 6


@pytest.mark.timeout(900)
def test_a_program_s_own_names_come_before_the_static_library_s(
    installed: dict[str, Path], tmp_path: Path
) -> None:
    write_header(tmp_path)
    folder = library_folder(installed["static"])
    flags = done(
        *("pkg-config", "--cflags", "--libs", "multihead"),
        PKG_CONFIG_PATH=str(folder / "pkgconfig"),
    ).split()
    sources = [ROOT / "tests/native/beside_apple.c", write_functions(tmp_path)]
    options = ["-DMULTIHEAD_BNNS_PREFIX", f"-I{tmp_path}", "-o", tmp_path / "program"]
    done("cc", *sources, *options, *flags, "-lm")
    assert done(tmp_path / "program") == "passed\n"


def test_plain_cmake_builds_for_release(tmp_path: Path) -> None:
    done(CMAKE, "-S", ROOT, "-B", tmp_path, *WITHOUT_PYTHON)
    cache = (tmp_path / "CMakeCache.txt").read_text()
    assert re.search("^CMAKE_BUILD_TYPE:STRING=Release$", cache, re.M)


def test_python_wants_the_shared_library(tmp_path: Path) -> None:
    options = ["-DMULTIHEAD_PYTHON=ON", "-DBUILD_SHARED_LIBS=OFF"]
    process = run(CMAKE, "-S", ROOT, "-B", tmp_path, *options)
    assert process.returncode != 0
    assert "MULTIHEAD_PYTHON needs BUILD_SHARED_LIBS=ON" in " ".join(process.stderr.split())
