"""Run the kernels on processors that lack something: `python tools/processors.py BUILD PYTHON`.

qemu stands in for the processors. Each must offer the kernel sets whose instructions it has and no
others, give on them the bits that are recorded, and answer with an error where another set is asked
for; that qemu does stop at an instruction which a processor lacks is looked at first. The objects
are those of the package in PYTHON's environment, which is imported and computes there likewise.
qemu 7 has no AVX-512: what this machine has of it runs as it is, and `tests/test_processors.py`
holds the choice against every bit of CPUID. aarch64's programs are built as `tools/cross.py` does.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cross

FEW = ("ragged", "few queries float32")  # lines of the digest: what an emulator has the time for
MODELS = {"x86_64": "qemu-x86_64", "aarch64": "qemu-aarch64"}
AARCH64 = cross.Target("aarch64-linux-musl", sets=cross.ARM, runner="qemu-aarch64")
UNAVAILABLE = "what this CPU can run"


@dataclass(frozen=True)
class Processor:
    """A model of qemu's, an instruction that it has and one that it lacks, and its kernel sets."""

    model: str
    has: str
    lacks: str
    sets: tuple[str, ...]
    lines: tuple[str, ...] = ("none",)  # of the digest, on the best set


PROCESSORS = {
    "x86_64": (
        Processor("Opteron_G1", "none", "avx", ("baseline",), FEW),  # SSE2, as every x86-64
        Processor("Nehalem", "none", "avx", ("baseline",)),
        Processor("SandyBridge", "avx", "fma", ("baseline",), FEW),
        Processor("Haswell,-avx2", "fma", "avx2", ("baseline",), FEW),
        Processor("Haswell,-fma", "avx2", "fma", ("baseline",)),
        Processor("Haswell,-f16c", "avx2", "f16c", ("baseline",)),
        Processor("Haswell,-popcnt", "avx2", "avx512f", ("baseline",)),
        Processor("Haswell", "avx2", "avx512f", ("avx2", "baseline"), FEW),
        Processor("EPYC", "avx2", "avx512f", ("avx2", "baseline")),
        Processor("KnightsMill", "avx2", "avx512f", ("avx2", "baseline")),
    ),
    "aarch64": (
        Processor("cortex-a53", "none", "bf16", ("neon", "baseline")),
        Processor("cortex-a72", "none", "bf16", ("neon", "baseline"), FEW),
        Processor("neoverse-n1", "none", "bf16", ("neon", "baseline")),
        Processor("max", "bf16", "", ("neon_bf16", "neon", "baseline"), (*FEW, "few queries")),
    ),
}
ALL = {"x86_64": cross.X86, "aarch64": (*cross.ARM, "baseline")}

# What the package must say there; NumPy wants SSE4.2.
PACKAGE = """
import hashlib
import numpy as np
import multihead as mh
layer = mh.MultiheadAttention(24, 3, add_bias_kv=True, batch_first=True, seed=0)
x = np.random.Generator(np.random.PCG64(1)).random((2, 70, 24), np.float32)
for name, array in layer.parameters().items():
    array[...] = np.resize(x.ravel()[len(name):], array.shape) - np.float32(0.5)
out, weights = layer(x, x, x, is_causal=True)
sha = hashlib.sha256(out.tobytes() + weights.tobytes())
for array in (*layer.backward(out), *layer.grads.values()):
    sha.update(array.tobytes())
sets = mh.show_config("dicts")
print(sets["isa"], *sets["available_isas"], sha.hexdigest())
"""


def call(words: list[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program; one on which the emulator itself falls has two more tries."""
    for tries in range(3, 0, -1):
        process = subprocess.run(
            [str(word) for word in words],
            env=os.environ | {"MULTIHEAD_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        if tries == 1 or cross.FELL not in process.stderr:
            break
        print(f"{words[2]}: {process.stderr.strip().splitlines()[-1]}; again", flush=True)
    return process


def wrong(what: str, process: subprocess.CompletedProcess[str]) -> SystemExit:
    """Make the end of this program: what failed, and how."""
    said = f"{process.returncode}: {process.stdout}{process.stderr}"
    return SystemExit(f"{what}: {said}")


def illegal(process: subprocess.CompletedProcess[str]) -> bool:
    """Whether a processor met an instruction that it does not have."""
    return process.returncode in (-signal.SIGILL, 128 + signal.SIGILL)


def digests(name: str, command: list[object], best: str, lines: tuple[str, ...], **how: str) -> int:
    """Hold what a digest prints against what is recorded; return how many lines that was."""
    done = call([*command, "1", *lines], **how)
    found = done.stdout.splitlines()
    unknown = set(found) - cross.RECORDED
    families = {line.split(":")[0] for line in found}
    family = "baseline" if best == "baseline" else "FMA"
    pairs = {best} if best in ("amx", "avx512_bf16", "neon_bf16") else set()
    expected = set() if lines == ("none",) else {family} | pairs
    if done.returncode != 0 or unknown or families != expected:
        raise wrong(f"{name}: not the recorded bits of {best}", done)
    return len(found)


def check(one: Processor, machine: str, digest: Path, instruction: Path) -> str:
    """Check one processor and return what was found to be right."""
    qemu: list[object] = [MODELS[machine], "-cpu", one.model]
    done = call([*qemu, instruction, one.has])
    if done.returncode != 0:
        raise wrong(f"{one.model}: {one.has}", done)
    if one.lacks and not illegal(done := call([*qemu, instruction, one.lacks])):
        raise wrong(f"{one.model}: qemu does not stop at {one.lacks}", done)
    for name in ALL[machine]:
        done = call([*qemu, digest, "1", "none"], MULTIHEAD_ISA=name)
        refused = done.returncode == 1 and UNAVAILABLE in done.stderr
        if done.returncode not in (0, 1) or refused == (name in one.sets):
            raise wrong(f"{one.model}: MULTIHEAD_ISA={name}", done)
    count = digests(one.model, [*qemu, digest], one.sets[0], one.lines, MULTIHEAD_ISA="")
    return f"{one.model}: {', '.join(one.sets)}; {count} digests on {one.sets[0]}"


def check_package(model: str, best: str, lacking: str, python: Path) -> str:
    """Check the installed package on a processor: what it runs on, its bits, what it refuses."""
    there = call(["qemu-x86_64", "-cpu", model, python, "-c", PACKAGE], MULTIHEAD_ISA="")
    here = call([python, "-c", PACKAGE], MULTIHEAD_ISA=best)
    words, expected = there.stdout.split(), here.stdout.split()
    if there.returncode or here.returncode or words[0] != best or words[-1] != expected[-1]:
        raise wrong(f"the package on {model}, and here: {here.stdout}{here.stderr}", there)
    forced = call(["qemu-x86_64", "-cpu", model, python, "-c", PACKAGE], MULTIHEAD_ISA=lacking)
    last = (forced.stderr.strip().splitlines() or [""])[-1]
    if forced.returncode != 1 or f"ImportError: MULTIHEAD_ISA: expected one of {best}" not in last:
        raise wrong(f"the package on {model}, MULTIHEAD_ISA={lacking}", forced)
    return f"the package on {model}: {best}, with the bits of this machine; {lacking} is refused"


def objects(build: Path) -> list[Path]:
    """Return the package's objects of the engine and its kernels."""
    folders = [path for path in build.iterdir() if path.name not in ("cross", "fuzz", "sanitize")]
    found = [path for folder in folders for path in folder.rglob("*.o")]
    made = [x for x in found if "multihead_objects.dir" in str(x) or "kernels_" in str(x)]
    newest: dict[str, Path] = {}  # of several environments' builds
    for path in sorted(made, key=lambda path: path.stat().st_mtime):
        newest[str(path).partition("CMakeFiles")[2]] = path
    if not newest:
        raise SystemExit(f"{build}: no objects of the package")
    return list(newest.values())


def programs_here(build: Path, to: Path) -> tuple[Path, Path]:
    """Link the digest with the package's objects, and compile the instructions."""
    compiler = os.environ.get("CXX", "c++")
    words = [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
    programs = to / "digest", to / "instruction"
    source = cross.NATIVE / "digest.cpp"
    macro = f"-DMULTIHEAD_{'X86' if platform.machine() == 'x86_64' else 'ARM64'}"
    linked = [*words, macro, source, *objects(build), "-pthread", "-o", programs[0]]
    alone = [*words, "-static", cross.NATIVE / "instruction.cpp", "-o", programs[1]]
    for command in (linked, alone):
        subprocess.run([str(word) for word in command], check=True)
    return programs


def programs_aarch64(build: Path) -> tuple[Path, Path]:
    """Build the digest and the instructions for aarch64."""
    cross.install(build)
    library = cross.compile_library(build, AARCH64)
    digest, instruction = (
        cross.compile_program(build, AARCH64, name, library)
        for name in ("digest.cpp", "instruction.cpp")
    )
    return digest, instruction


def jobs(build: Path, python: Path) -> Iterator[Callable[[], str]]:
    """Give what is to be checked, what takes long first."""
    machine = platform.machine()
    to = build / "processors"
    to.mkdir(parents=True, exist_ok=True)
    digest, instruction = programs_here(build, to)
    if machine == "x86_64":
        for one in sorted(PROCESSORS[machine], key=lambda one: one.sets[0] == "baseline"):
            yield lambda one=one: check(one, machine, digest, instruction)
        yield lambda: check_package("Nehalem", "baseline", "avx2", python)
        yield lambda: check_package("Haswell", "avx2", "avx512", python)

    def here() -> str:
        sets = [name for name in ALL[machine] if cross.can_run(name)]
        counts = [digests("here", [digest], name, (), MULTIHEAD_ISA=name) for name in sets]
        return f"this machine: {', '.join(sets)}; {sum(counts)} digests"

    yield here
    other, instructions = programs_aarch64(build / "cross")
    for one in reversed(PROCESSORS["aarch64"]):
        yield lambda one=one: check(one, "aarch64", other, instructions)


def main() -> None:
    """Check every processor, two at a time."""
    start = time.perf_counter()
    build, python = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).absolute()
    (build / "cross").mkdir(parents=True, exist_ok=True)
    cross.install(build / "cross")
    for runner in MODELS.values():
        if shutil.which(runner) is None:
            raise SystemExit(f"needs {runner} (Debian: apt install qemu-user)")

    def told(job: Callable[[], str]) -> None:
        print(job(), flush=True)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(told, job) for job in jobs(build, python)]
        for one in as_completed(running):
            if one.exception():
                pool.shutdown(cancel_futures=True)
            one.result()
    print(f"{len(running)} passed, 0 failed, in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
