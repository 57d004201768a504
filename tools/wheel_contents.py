"""What a source distribution and a wheel hold: what git has, what is built, nothing else."""

from __future__ import annotations

import fnmatch
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# patterns of what a build adds to the package, each for one file
BUILT = (
    "multihead/_native.*.so",
    "multihead/libmultihead.so",
    "multihead/pkgconfig/multihead.pc",
    "multihead/cmake/multihead-config.cmake",
    "multihead/cmake/multihead-config-version.cmake",
    "multihead/cmake/multihead-config-targets.cmake",
    "multihead/cmake/multihead-config-targets-release.cmake",
    "multihead-*.dist-info/METADATA",
    "multihead-*.dist-info/RECORD",
    "multihead-*.dist-info/WHEEL",
    "multihead-*.dist-info/entry_points.txt",
    "multihead-*.dist-info/licenses/LICENSE",
)

FOR_JAX = "multihead/libmultihead_xla.so"  # where there is a JAX that takes it


def tracked(*folders: str) -> list[str]:
    """List the files that git has."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *folders]
    return subprocess.check_output(command, text=True).strip("\0").split("\0")


def differences(found: set[str], expected: Iterable[str], built: Sequence[str]) -> list[str]:
    """Say which files lack, and which should not be there."""
    expected = set(expected)
    made = {pattern: fnmatch.filter(found, pattern) for pattern in built}
    wrong = [f"lacks {name}" for name in sorted(expected - found)]
    wrong += [f"has {len(names)} of {name}" for name, names in made.items() if len(names) != 1]
    known = expected.union(*made.values())
    return wrong + [f"has {name}" for name in sorted(found - known)]


def of_source(source: Path) -> list[str]:
    """Say what is wrong with the files of a source distribution."""
    with tarfile.open(source) as archive:
        found = {x.name.partition("/")[2] for x in archive.getmembers() if not x.isdir()}
    aside = (".ci/", ".github/")
    return differences(found, (x for x in tracked() if not x.startswith(aside)), ["PKG-INFO"])


def of_wheel(wheel: Path) -> list[str]:
    """Say what is wrong with the files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    package = [name.removeprefix("src/") for name in tracked("src/multihead")]
    headers = [f"multihead/{name}" for name in tracked("include")]
    jax = [] if "-cp310-" in wheel.name or "musllinux" in wheel.name else [FOR_JAX]
    return differences(found, package + headers, [*BUILT, *jax])
