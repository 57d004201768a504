"""Build source and wheels for some Pythons, and check each: `python tools/wheels.py BUILD PYTHON`.

Wheels are made of the source distribution, as users' are; a Python that an earlier one's fits takes
that. Each holds the package's files and no others, and is clean: `auditwheel show` names the oldest
Linux that it runs on, and nothing in it is linked to what that lacks; `abi3audit` finds nothing
outside the stable ABI in one that promises it. It is then installed into an empty environment, on a
PATH without compilers, where `multihead check` must pass. The exit code is 1 if anything fails.

With ccache, what does not depend on Python is compiled once.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import wheel_contents
from packaging.tags import cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "pyproject.toml"
LIMIT = 3600  # seconds
LAST_OF_OLDEST_NUMPY = 12  # of CPython 3: no later one has wheels of NumPy 1.26


def run(*command: str | Path, **options: object) -> str:
    """Run a program to its end; raise with what it said if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout[-3000:]}")
    return str(done.stdout)


def environment(python: str, folder: Path) -> Path:
    """Make an empty environment; return its interpreter."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def version(python: str) -> tuple[int, str]:
    """Ask an interpreter for its minor version and its ABI: (13, "cp313")."""
    ask = "import sys, sysconfig; print(sys.version_info[1], sysconfig.get_config_var('SOABI'))"
    minor, abi = run(python, "-c", ask).split()
    return int(minor), "cp" + abi.split("-")[1]


def fitting(python: str, folder: Path) -> Path | None:
    """Find the wheel that pip would take for a Python."""
    minor, abi = version(python)
    tags = set(cpython_tags((3, minor), [abi]))
    fit = (x for x in folder.glob("*.whl") if tags & parse_wheel_filename(x.name)[-1])
    return next(fit, None)


def unpacked(source: Path, folder: Path) -> Path:
    """Unpack a source distribution; return its one folder."""
    shutil.unpack_archive(source, folder)
    return next(folder.iterdir())


def built(python: str, source: Path, to: Path) -> Path:
    """Build the wheel of an unpacked source distribution for a Python."""
    with tempfile.TemporaryDirectory() as folder:
        own = environment(python, Path(folder) / "environment")
        known = os.environ | {"MULTIHEAD_XLA": "1"}
        if shutil.which("ccache"):
            known["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
        pip = (own, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder)
        run(*pip, source, env=known)
        made = next(Path(folder).glob("*.whl"))
        return Path(shutil.move(made, to / made.name))


def audited(wheel: Path) -> str:
    """Say which policy a wheel follows."""
    wrong = wheel_contents.of_wheel(wheel)
    if wrong:
        raise RuntimeError(f"{wheel.name}: " + ", ".join(wrong))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel)
    if "-abi3-" in wheel.name:
        run(sys.executable, "-m", "abi3audit", "--strict", wheel)
    said = run(sys.executable, "-m", "auditwheel", "show", wheel)
    found = re.search(r'platform\s+tag:\s+"(manylinux|musllinux)([\w.]+)"', said)
    if found is None:
        raise RuntimeError(f"{wheel.name} follows no policy:\n{said}")
    return found[1] + found[2]


def checked(python: str, wheel: Path) -> str:
    """Install a wheel where there is no compiler, and let it check itself; return its verdict.

    Where the oldest NumPy that the package takes has a wheel for this Python, it is tried first.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = environment(python, Path(folder) / "environment")
        install = (own, "-m", "pip", "install", "--quiet", "--only-binary=:all:")
        alone = {"PATH": str(own.parent), "HOME": folder, "LANG": "C.UTF-8"}
        check = (own, "-m", "multihead", "check")
        if version(python)[0] <= LAST_OF_OLDEST_NUMPY:
            run(*install, wheel, f"numpy=={oldest_numpy()}.*")
            run(*check, cwd=folder, env=alone)
        run(*install, "--upgrade", wheel, "numpy")
        said = run(*check, cwd=folder, env=alone)
        return said.strip().splitlines()[-1]


def oldest_numpy() -> str:
    """Return the oldest NumPy that the package takes: 1.26."""
    found = re.search(r'^dependencies = \["numpy>=([\d.]+)"\]', PROJECT.read_text(), re.M)
    assert found
    return found[1]


def source_distribution(to: Path) -> Path:
    """Build the source distribution."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", to, ROOT)
    source = next(to.glob("*.tar.gz"))
    wrong = wheel_contents.of_source(source)
    if wrong:
        raise RuntimeError(f"{source.name}: " + ", ".join(wrong))
    run(sys.executable, "-m", "twine", "check", "--strict", source)
    return source


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and check."""
    parser = argparse.ArgumentParser(prog="python tools/wheels.py", description=__doc__)
    parser.add_argument("build", type=Path, help="where the files go, into its folder wheels")
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters")
    options = parser.parse_args(arguments)
    to = options.build.resolve() / "wheels"
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        archive = source_distribution(to)
        print(archive.name, flush=True)
        source = unpacked(archive, Path(folder))
        for python in sorted(options.pythons, key=version):
            start = time.monotonic()
            print(f"{python} ({version(python)[1]}): ", end="", flush=True)
            try:
                wheel = fitting(python, to) or built(python, source, to)
                print(f"{wheel.name}, {audited(wheel)}; {checked(python, wheel)}", end="")
                print(f" ({time.monotonic() - start:.0f} s)", flush=True)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(error, flush=True)
                failed = True
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
