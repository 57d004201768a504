"""Build source and wheels for some Pythons, and check each: `python tools/wheels.py BUILD PYTHON`.

Each wheel is made of the source distribution, as users' are, and must be clean: `auditwheel show`
names the oldest Linux that it runs on, and nothing in it is linked to what that lacks. It is then
installed into an empty environment, on a PATH without compilers, where `multihead check` must pass.
The exit code is 1 if anything fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1800  # seconds


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


def version(python: str) -> tuple[int, int]:
    """Ask an interpreter for its version."""
    words = run(python, "-c", "import sys; print(*sys.version_info[:2])").split()
    return int(words[0]), int(words[1])


def built(python: str, source: Path, to: Path) -> Path:
    """Build the wheel of a source distribution for a Python."""
    with tempfile.TemporaryDirectory() as folder:
        own = environment(python, Path(folder) / "environment")
        run(own, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
        made = next(Path(folder).glob("*.whl"))
        return Path(shutil.move(made, to / made.name))


def audited(wheel: Path) -> str:
    """Say which policy a wheel follows."""
    said = run(sys.executable, "-m", "auditwheel", "show", wheel)
    found = re.search(r'platform\s+tag:\s+"(manylinux|musllinux)([\w.]+)"', said)
    if found is None:
        raise RuntimeError(f"{wheel.name} follows no policy:\n{said}")
    return found[1] + found[2]


def checked(python: str, wheel: Path) -> str:
    """Install a wheel where there is no compiler, and let it check itself; return its verdict."""
    with tempfile.TemporaryDirectory() as folder:
        own = environment(python, Path(folder) / "environment")
        run(own, "-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel)
        alone = {"PATH": str(own.parent), "HOME": folder, "LANG": "C.UTF-8"}
        said = run(own, "-m", "multihead", "check", cwd=folder, env=alone)
        return said.strip().splitlines()[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and check."""
    parser = argparse.ArgumentParser(prog="python tools/wheels.py", description=__doc__)
    parser.add_argument("build", type=Path, help="where the files go, into its folder wheels")
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters")
    options = parser.parse_args(arguments)
    to = options.build.resolve() / "wheels"
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", to, ROOT, env=dict(os.environ))
    source = next(to.glob("*.tar.gz"))
    print(source.name)
    failed = False
    for python in sorted(options.pythons, key=version):
        name = "CPython {}.{}".format(*version(python))
        try:
            wheel = built(python, source, to)
            print(f"{name}: {wheel.name}, {audited(wheel)}; {checked(python, wheel)}", flush=True)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{name}: {error}", flush=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
