"""What the system says of this machine, and of what this process may use of it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

DEVELOPERS = ("bench", "docs", "fuzz", "lint", "peers", "test")  # extras of a clone


def processor() -> str:
    """Return the processor's name.

    Examples
    --------
    >>> bool(processor())
    True
    """
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def affinity() -> int:
    """Return how many CPUs this process may run on.

    Examples
    --------
    >>> 1 <= affinity() <= os.cpu_count()
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_limit(root: str = "") -> float | None:
    """Return how many CPUs' time the control groups of this process leave it; None: no limit.

    Parameters
    ----------
    root : str
        Where the system's files lie, for tests.

    Examples
    --------
    >>> cgroup_limit("/nowhere") is None
    True
    """
    places = {"": "", "cpu": ""}  # of version 2, and of version 1
    for line in _lines(f"{root}/proc/self/cgroup"):
        _, names, place = line.split(":", 2)
        places |= {name: place for name in names.split(",") if name in places}
    top = Path(f"{root}/sys/fs/cgroup")
    return _least(top, places[""], _quota_v2) or _least(top / "cpu", places["cpu"], _quota_v1)


def _least(top: Path, place: str, quota: Callable[[Path], float | None]) -> float | None:
    """Return the least quota from a place up to the top."""
    inner = Path(place.lstrip("/"))
    found = [quota(top / group) for group in (inner, *inner.parents)]
    return min((each for each in found if each is not None), default=None)


def _quota_v2(group: Path) -> float | None:
    return _quotient(" ".join(_lines(group / "cpu.max")))


def _quota_v1(group: Path) -> float | None:
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return _quotient(" ".join(line for name in names for line in _lines(group / name)))


def _quotient(text: str) -> float | None:
    numbers = re.fullmatch(r"([1-9]\d*) ([1-9]\d*)", text.strip())
    return int(numbers[1]) / int(numbers[2]) if numbers else None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def version_of(package: str) -> str | None:
    """Return the version of a package; None if it is not installed.

    Examples
    --------
    >>> version_of("numpy") is None, version_of("no such package")
    (False, None)
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, dict[str, str | None]]:
    """Return the extras that users may want: the version of each package, None if it is missing.

    Examples
    --------
    >>> "rich" in extras()["cli"]
    True
    """
    found: dict[str, dict[str, str | None]] = {}
    for requirement in metadata.requires("multihead") or []:
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", requirement)
        package = re.match(r"[\w.-]+", requirement)
        if extra and package and extra[1] not in DEVELOPERS:
            found.setdefault(extra[1], {})[package[0]] = version_of(package[0])
    return found


def description() -> dict[str, Any]:
    """Return what a reader of figures must know of the machine.

    Examples
    --------
    >>> sorted(description())
    ['affinity', 'cgroup_limit', 'cpus', 'processor', 'system']
    """
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "affinity": affinity(),
        "cgroup_limit": cgroup_limit(),
        "system": f"{platform.system()} {platform.machine()}",
    }
