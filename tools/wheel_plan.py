"""Check what cibuildwheel would build for a release: `python tools/wheel_plan.py`.

It must be every CPython from the oldest that the package takes to the newest that cibuildwheel has,
without gaps, and each free-threaded one, on every system of a release. The exit code is 1 if not.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# cibuildwheel's name of a system and of a processor, and the systems in its identifiers
SYSTEMS = {
    ("linux", "x86_64"): ("manylinux_x86_64", "musllinux_x86_64"),
    ("linux", "aarch64"): ("manylinux_aarch64", "musllinux_aarch64"),
    ("macos", "x86_64"): ("macosx_x86_64",),
    ("macos", "arm64"): ("macosx_arm64",),
    ("windows", "AMD64"): ("win_amd64",),
}
FREE_THREADED = 14  # the first that is no experiment


def planned(platform: str, processor: str) -> set[str]:
    """Ask cibuildwheel what it would build."""
    command = (sys.executable, "-m", "cibuildwheel", "--print-build-identifiers")
    said = subprocess.check_output(
        [*command, "--platform", platform, "--archs", processor, str(ROOT)], text=True
    )
    return set(said.split())


def expected(newest: int, systems: tuple[str, ...]) -> set[str]:
    """List what should be built."""
    project = (ROOT / "pyproject.toml").read_text()
    oldest = re.search(r'^requires-python = ">=3\.(\d+)"', project, re.M)
    assert oldest
    pythons = [f"cp3{minor}" for minor in range(int(oldest[1]), newest + 1)]
    pythons += [f"cp3{minor}t" for minor in range(FREE_THREADED, newest + 1)]
    return {f"{python}-{system}" for python in pythons for system in systems}


def wrong_version() -> str:
    """Say if the workflow takes another cibuildwheel than is installed."""
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    here = metadata.version("cibuildwheel")
    pinned = re.findall(r"cibuildwheel==([\w.]+)", workflow)
    return "" if pinned == [here] else f"release.yml takes cibuildwheel {pinned}, not {here}"


def main() -> int:
    """Compare."""
    wrong = wrong_version()
    for (platform, processor), systems in SYSTEMS.items():
        found = planned(platform, processor)
        newest = max(int(x[1]) for x in map(re.compile(r"cp3(\d+)").match, found) if x)
        difference = sorted(expected(newest, systems) ^ found)
        print(f"{platform} {processor}: {len(found)}, to CPython 3.{newest}")
        if difference:
            wrong += f"\nlacks or should lack {', '.join(difference)}"
    print(wrong or "every Python on every system", file=sys.stderr if wrong else sys.stdout)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
