"""The engine without Python: its bits on random calls are those recorded in digests.txt."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from multihead import _native

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "tests" / "native"
EXACT = ("-std=c++20", "-O1", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi")
SETS = {
    "avx512": ("64", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"),
    "avx2": ("32", "-mavx2", "-mfma"),
    "neon": ("16",),
    "baseline": ("16",),
}
ARCHITECTURES = {"x86_64": "X86", "amd64": "X86", "aarch64": "ARM64", "arm64": "ARM64"}


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


def stubs(isa: str) -> str:
    """A source in which the other sets are this one, which saves compiling them."""
    others = [name for name in SETS if name != isa]
    lines = [f"const KernelSet& {name}_kernels() {{ return {isa}_kernels(); }}" for name in others]
    declared = f"struct KernelSet;\nconst KernelSet& {isa}_kernels();"
    return "\n".join(("namespace multihead {", declared, *lines, "}")) + "\n"


@pytest.mark.timeout(300)
def test_the_engine_s_bits_are_those_recorded(tmp_path: Path) -> None:
    isa = _native.available_isas()[0]
    width, *options = SETS[isa]
    defines = []
    if platform.machine().lower() in ARCHITECTURES:
        defines = [f"-DMULTIHEAD_{ARCHITECTURES[platform.machine().lower()]}"]
    kernel = (f"-DMULTIHEAD_ISA={isa}", f"-DMULTIHEAD_VECTOR_BYTES={width}", *options)
    source, stub, program = ROOT / "csrc/kernels/kernels.cpp", tmp_path / "stub.cpp", tmp_path / "p"
    stub.write_text(stubs(isa))
    sources = [x for part in ("engine", "platform") for x in (ROOT / "csrc" / part).glob("*.cpp")]
    parts = [
        (*EXACT, *defines, *kernel, "-Wno-maybe-uninitialized", "-c", source),
        (*EXACT, *defines, "-c", NATIVE / "digest.cpp"),
        *((*EXACT, *defines, "-c", x) for x in sources),
        (*EXACT, *defines, "-c", stub),
    ]
    objects = [tmp_path / f"{i}.o" for i in range(len(parts))]
    jobs = [("c++", *part, "-o", to) for part, to in zip(parts, objects, strict=True)]
    running: list[subprocess.Popen[str]] = []
    for job in jobs:
        if len(running) == 2:
            finish(running.pop())
        running.append(start(*job))
    for process in running:
        finish(process)
    finish(start("c++", "-pthread", *objects, "-o", program))
    done = subprocess.run(
        [program],
        env=os.environ | {"MULTIHEAD_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    family = "baseline" if isa == "baseline" else "FMA"
    kept = (NATIVE / "digests.txt").read_text().splitlines()
    assert done.stdout.splitlines() == [x for x in kept if x.startswith(f"{family}:")]
