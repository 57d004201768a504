"""Kernel sets for tests alone, which run on any machine.

`wide` is the production kernels with 64-byte vectors that the compiler lowers; `grouped` has
another layout of tiles. Both give the bits of the sets with fused multiply-add. `emulated_dot` and
`emulated_amx` are the production kernels of bfloat16 on its instructions in plain C++: they give
the bits of `avx512_bf16` and `amx`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path

from multihead import _native

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "tests" / "native"
EXACT = ("-std=c++20", "-O1", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi")
SETS = {  # without pairs of bfloat16
    "avx512": ("64", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"),
    "avx2": ("32", "-mavx2", "-mfma", "-mf16c"),
    "neon": ("16",),
    "baseline": ("16",),
}
PAIRS = {  # of bfloat16, and the plain sets beside which they stand
    "amx": (
        "avx512",
        *SETS["avx512"],
        "-mavx512bf16",
        "-mamx-tile",
        "-mamx-bf16",
        "-DMULTIHEAD_AMX",
    ),
    "avx512_bf16": ("avx512", *SETS["avx512"], "-mavx512bf16"),
    "neon_bf16": ("neon", "16", "-march=armv8.2-a+bf16"),
}
ARCHITECTURES = {"x86_64": "X86", "amd64": "X86", "aarch64": "ARM64", "arm64": "ARM64"}
OURS = tuple(isa for isa in _native.available_isas() if isa in SETS)  # of the library, best first
FOR_TESTS = ("wide", "grouped")
EMULATED = {"emulated_dot": "avx512_bf16", "emulated_amx": "amx"}  # sets, and whose bits they have
OF_PAIRS = tuple(isa for isa in _native.available_isas() if isa not in SETS)
# each once: an emulated set where the processor has not the real one, whose bits it has
DISTINCT_PAIRS = (*OF_PAIRS, *(x for x, real in EMULATED.items() if real not in OF_PAIRS))
COMPILER = os.environ.get("CXX", "c++")


def architecture() -> list[str]:
    """The macro of this machine's architecture."""
    name = ARCHITECTURES.get(platform.machine().lower())
    return [f"-DMULTIHEAD_{name}"] if name else []


def kernels_of(
    name: str, width: str, *options: str, source: str = "kernels"
) -> tuple[str | Path, ...]:
    """Arguments that compile the kernels as a set."""
    macros = (f"-DMULTIHEAD_ISA={name}", f"-DMULTIHEAD_VECTOR_BYTES={width}")
    kernels = ROOT / f"csrc/kernels/{source}.cpp"
    return ("-fPIC", *options, *macros, "-Wno-maybe-uninitialized", kernels)


def start(*command: str | Path) -> subprocess.Popen[str]:
    """Start a compiler."""
    return subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for it; fail with what it says."""
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors


def objects(parts: list[tuple[str | Path, ...]], folder: Path) -> list[Path]:
    """Compile each part, two at a time."""
    made = [folder / f"{i}.o" for i in range(len(parts))]
    running: list[subprocess.Popen[str]] = []
    for part, to in zip(parts, made, strict=True):
        if len(running) == 2:
            finish(running.pop(0))
        running.append(start(COMPILER, *EXACT, *architecture(), *part, "-c", "-o", to))
    for process in running:
        finish(process)
    return made


def header(what: str, name: str) -> str:
    """Define a macro that brings a header of ours in the place of the library's."""
    return f'-DMULTIHEAD_{what}_HEADER="{NATIVE / name}.h"'


def parts() -> list[tuple[str | Path, ...]]:
    """What the library of the sets is compiled from."""
    width, *options = SETS[OURS[0]]
    wide_options = [x for x in options if not x.startswith("-mavx512")]
    if len(wide_options) < len(options):
        wide_options.append("-mavx2")
    wide = [*wide_options, header("VEC", "vec_wide")]
    dot = [*wide, "-DMULTIHEAD_PLAIN=wide", header("PAIRS", "pairs_emulated")]
    amx = [*dot, "-DMULTIHEAD_AMX", header("AMX", "amx_emulated")]
    return [
        kernels_of("wide", "64", *wide),
        kernels_of("emulated_dot", "64", *dot, source="bfloat16"),
        kernels_of("emulated_amx", "64", *amx, source="bfloat16"),
        kernels_of("plain", width, *options),
        ("-fPIC", NATIVE / "grouped.cpp"),
    ]


def library() -> Path:
    """The library of the sets, compiled unless it was before; parallel runs do not collide."""
    sha = hashlib.sha256(repr((COMPILER, EXACT, architecture(), parts())).encode())
    sources = [*(ROOT / "csrc/kernels").iterdir(), ROOT / "csrc/platform/compiler.h"]
    for source in sorted([*sources, *NATIVE.glob("*.h"), NATIVE / "grouped.cpp"]):
        sha.update(source.read_bytes())
    cache = ROOT / "build" / "test-kernels"
    made = cache / f"{sha.hexdigest()[:16]}.so"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            linked = Path(folder) / "sets.so"
            finish(start(COMPILER, "-shared", *objects(parts(), Path(folder)), "-o", linked))
            linked.replace(made)
    return made


@functools.cache
def load() -> ctypes.CDLL:
    """Make the sets known to the library, for good."""
    sets = ctypes.CDLL(str(library()))
    for name in (*FOR_TESTS, *EMULATED):
        address = getattr(sets, f"{name}_set")
        address.restype = ctypes.c_void_p
        _native.add_kernels(address())
    return sets


load()
ALL = (*OURS, *FOR_TESTS)
# those whose bits are the same; what has no fused multiply-add differs, and so does its layout
EXACT_SETS = tuple(x for x in ALL if x != "baseline" and (x != "grouped" or OURS[0] != "baseline"))


def cuts_sums_alike(isa: str, call: str) -> bool:
    """Whether a set cuts the sums of a described call where all others do.

    A projection's sum is cut after 128 rows of tiles, and heads of an odd size have a row more
    where pairs are.
    """
    size = re.search(r"(?:embed_dim|in_features)=(\d+)(?:, num_heads=(\d+))?", call)
    if isa != "grouped" or not size:
        return True
    embed_dim, heads = int(size[1]), int(size[2] or size[1])  # PyTorch's does not say how many
    return embed_dim <= 128 or embed_dim // heads % 2 == 0
