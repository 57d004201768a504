"""What the benchmark measures in C++, compiled into ``build/benchmarks`` at its first use."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "benchmarks"
TIMEOUT = 300

FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
# as CMakeLists.txt has them for the kernels
EXACT = ("-ffp-contract=off", "-fno-math-errno", "-Wno-psabi")
ISAS: dict[str, tuple[int, tuple[str, ...]]] = {
    "avx512": (64, ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma")),
    "avx2": (32, ("-mavx2", "-mfma", "-mf16c")),
    "neon": (16, ()),
    "baseline": (16, ()),
}
# sets with instructions for half precision multiply float32 as these do
FLOAT32 = {"avx512_bf16": "avx512", "amx": "avx512", "neon_bf16": "neon"}
ARCHITECTURES = {
    "x86_64": "MULTIHEAD_X86",
    "amd64": "MULTIHEAD_X86",
    "aarch64": "MULTIHEAD_ARM64",
    "arm64": "MULTIHEAD_ARM64",
}


class CompilerError(RuntimeError):
    """There is no C++20 compiler, or it refused the benchmark's sources."""


def compiler() -> list[str]:
    """Return the command of the system's C++ compiler, ``CXX`` before all others.

    Raises
    ------
    CompilerError
        If there is none.
    """
    for command in [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]]:
        if command and shutil.which(command[0]):
            return command
    raise CompilerError(
        "the benchmark compiles what measures the FMA limit and needs a C++20 compiler, but found "
        "none (Debian, Ubuntu: apt install g++; or name one in CXX)"
    )


def build(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Compile a shared library, unless the same sources have been compiled so before.

    Raises
    ------
    CompilerError
        If there is no compiler, or with what it says of an error.
    """
    command = [*compiler(), *FLAGS, *EXACT, *flags, *map(str, sources)]
    digest = hashlib.sha256(" ".join(command).encode())
    headers = [path for part in ("kernels", "engine", "platform") for path in _headers(part)]
    for path in [*sources, *headers]:
        digest.update(path.read_bytes())
    library = BUILD / f"{name}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        made = Path(folder) / library.name
        done = subprocess.run(
            [*command, "-o", str(made)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise CompilerError(f"{command[0]} cannot compile {name}: {done.stderr.strip()}")
        made.replace(library)
    return library


def prepare(isa: str) -> None:
    """Compile all of it now, so that no time is lost while others are measured.

    Raises
    ------
    CompilerError
        If there is no compiler.
    """
    _limit(FLOAT32.get(isa, isa))
    _region()


def fma_rate(isa: str, seconds: float, threads: int) -> float:
    """Measure the flop/s of FMAs in float32 registers, on all threads at once.

    Parameters
    ----------
    isa : str
        Whose vectors: a kernel set's name. The baseline has no FMA and multiplies, then adds.
    seconds : float
    threads : int
    """
    return float(_limit(FLOAT32.get(isa, isa)).fma_rate(seconds, threads))


def read(isa: str, arrays: Sequence[NDArray[Any]], threads: int) -> None:
    """Read arrays once, as fast as the machine can.

    Parameters
    ----------
    isa : str
        Whose vectors.
    arrays : sequence of ndarray
        Each in one piece.
    threads : int
    """
    library = _limit(FLOAT32.get(isa, isa))
    for array in arrays:
        library.read_floats(array.ctypes.data, array.nbytes // 4, threads)


def region_seconds(iterations: int, threads: int) -> float:
    """Measure an empty parallel region of the engine's pool: the median of so many, in seconds.

    The pool is a second one, compiled from the engine's source: nothing else is in the time.
    """
    return float(_region().region_seconds(iterations, threads))


@cache
def _limit(isa: str) -> ctypes.CDLL:
    size, flags = ISAS[isa]
    defined = [f"-DMULTIHEAD_ISA={isa}", f"-DMULTIHEAD_VECTOR_BYTES={size}", *_architecture()]
    library = ctypes.CDLL(str(build(f"limit-{isa}", [HERE / "limit.cpp"], [*defined, *flags])))
    library.fma_rate.argtypes = [ctypes.c_double, ctypes.c_int]
    library.fma_rate.restype = ctypes.c_double
    library.read_floats.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    library.read_floats.restype = None
    return library


@cache
def _region() -> ctypes.CDLL:
    engine = ROOT / "csrc"
    names = ("cgroups_*", "cpu", "system_features_*", "threads_*", "usable_cpus_*")
    system = [path for each in names for path in sorted((engine / "platform").glob(f"{each}.cpp"))]
    pooled = ("interruption", "lent_threads", "thread_pool")
    pool = [engine / "engine" / f"{name}.cpp" for name in pooled]
    sources = [HERE / "region.cpp", *pool, *system]
    library = ctypes.CDLL(str(build("region", sources, _architecture())))
    library.region_seconds.argtypes = [ctypes.c_int, ctypes.c_int]
    library.region_seconds.restype = ctypes.c_double
    return library


def _headers(part: str) -> list[Path]:
    return sorted((ROOT / "csrc" / part).glob("*.h"))


def _architecture() -> list[str]:
    name = ARCHITECTURES.get(platform.machine().lower())
    return [] if name is None else [f"-D{name}"]
