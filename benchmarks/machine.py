"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import multihead
from benchmarks import native
from multihead import _native

# a BLAS told to take another core's kernels would make the comparison with NumPy unfair
BLAS_OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

PEERS = ("torch", "threadpoolctl", "openvino", "jax")


def processor() -> str:
    """Return the processor's name, from the system or from py-cpuinfo."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if installed("py-cpuinfo") is not None:  # elsewhere, and on ARM, where /proc has no name
        from cpuinfo import get_cpu_info

        name = get_cpu_info().get("brand_raw")
        if name:
            return str(name)
    return platform.processor() or platform.machine()


# what decides how fast, and how exactly, half precision is computed; as Linux names them
TELLING = (
    "avx2",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_fp16",
    "asimd",
    "asimdhp",
    "bf16",
)


def instructions() -> list[str]:
    """Name those of the processor's instruction sets that half precision depends on.

    Empty where the system does not tell.
    """
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return []
    for line in info.read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            present = set(flags.split())
            return [each for each in TELLING if each in present]
    return []


def installed(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(threads: int) -> dict[str, Any]:
    """Collect date, machine, instruction set, threads and versions, for table and JSON file."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "isa": _native.isa(),
        "threads": threads,
        "blas": blas(),
        "versions": {
            "python": platform.python_version(),
            "multihead": multihead.__version__,
            "numpy": np.__version__,
            **{peer: installed(peer) for peer in PEERS},
        },
    }


def blas() -> str | None:
    """Name NumPy's BLAS and the kernels it chose; None if threadpoolctl cannot tell."""
    if installed("threadpoolctl") is None:
        return None
    from threadpoolctl import threadpool_info

    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return (
        ", ".join(
            " ".join(
                str(pool[key]) for key in ("internal_api", "version", "architecture") if key in pool
            )
            for pool in found
        )
        or None
    )


@contextmanager
def kernel_set(name: str) -> Iterator[None]:
    """Run calls on one of the engine's kernel sets."""
    before = _native.use_isa(name)
    try:
        yield
    finally:
        _native.use_isa(before)


def set_threads(threads: int) -> None:
    """Give every contender the same number of threads."""
    _native.set_num_threads(threads)
    if installed("torch") is not None:
        import torch

        torch.set_num_threads(threads)
    if installed("threadpoolctl") is not None:
        from threadpoolctl import ThreadpoolController

        ThreadpoolController().select(user_api="blas").limit(limits=threads)


class Limit:
    """The machine's FMA limit: each call measures it anew, and how much of the machine we get.

    Parameters
    ----------
    threads : int
        How many threads multiply and add, with the vectors that the engine has chosen.
    """

    SECONDS = 0.02

    def __init__(self, threads: int) -> None:
        self.threads, self.isa = threads, _native.isa()
        self._shares: list[float] = []

    def __call__(self) -> float:
        """Return the limit in flop/s."""
        wall, used = time.perf_counter(), time.process_time()
        rate = native.fma_rate(self.isa, self.SECONDS, self.threads)
        wall, used = time.perf_counter() - wall, time.process_time() - used
        self._shares.append(min(1.0, used / (wall * self.threads)))
        return rate

    @property
    def granted(self) -> float:
        """The share of the processors' time that this process got, the mean over all calls."""
        return self.granted_since(0)

    def mark(self) -> int:
        """Return the moment, for `granted_since`."""
        return len(self._shares)

    def granted_since(self, mark: int) -> float:
        """Return the same for the calls after a moment; 1 if there were none."""
        return fmean(self._shares[mark:] or [1.0])
