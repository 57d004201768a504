"""Build with other compilers and for other systems: `python tools/cross.py BUILD_DIRECTORY`.

Names of targets behind it: those alone. CMake builds the C library for every target below, with
warnings as errors. Zig's compiler, from PyPI, brings the headers and libraries of musl, macOS and
Windows. Where this machine can run the target's programs, through qemu or wine if need be, the C
program must pass, and the native digest must print the bits that are recorded, on every kernel set.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "tests" / "native"
RECORDED = set((NATIVE / "digests.txt").read_text().splitlines())


X86 = ("avx2", "avx512", "avx512_bf16", "amx", "baseline")
ARM = ("neon", "neon_bf16")
HERE = ARM if platform.machine() in ("aarch64", "arm64") else X86


@dataclass(frozen=True)
class Target:
    """A system, a compiler for it, and what runs its programs: on these kernel sets, if any."""

    name: str  # as Zig has it, where the compiler is Zig's
    system: str = "Linux"  # as CMake has it
    compiler: str = "zig"
    sets: tuple[str, ...] = ()
    runner: str = ""


TARGETS = (
    Target(f"{platform.machine()}-clang", compiler="clang++", sets=HERE),
    Target("aarch64-gcc", compiler="aarch64-linux-gnu-g++", sets=ARM, runner="qemu-aarch64"),
    Target("x86_64-linux-musl", sets=X86),
    Target("aarch64-linux-musl", sets=ARM, runner="qemu-aarch64"),
    Target("x86_64-windows-gnu", "Windows", sets=("avx2", "baseline"), runner="wine"),
    Target("aarch64-windows-gnu", "Windows"),
    Target("x86_64-macos", "Darwin"),
    Target("aarch64-macos", "Darwin"),
)
PACKAGES = {
    "clang++": "clang",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
    "wine": "wine wine64",
}
FELL = "uncaught target signal 11"
QUICK = ("-O1", "-fno-sanitize=undefined")


def install(build: Path) -> None:
    """Install what is lacking: Zig in an environment of its own, runners with apt if we may."""
    if not (build / "zig/bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", build / "zig"], check=True)
    pip = [build / "zig/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", "ziglang", "cmake", "ninja"], check=True)
    lacking = [names for tool, names in PACKAGES.items() if shutil.which(tool) is None]
    if lacking:
        subprocess.run([ROOT / "tools/apt.sh", *" ".join(lacking).split()], check=False)


def tool(build: Path, name: str, *words: str) -> Path:
    """Write a script that runs one of Zig's tools, for CMake to call."""
    script = build / name
    command = " ".join(map(str, [build / "zig/bin/python", "-m", "ziglang", *words]))
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    return script


def compiler(build: Path, target: Target, language: str) -> list[str]:
    """Return what compiles C++ or C for a target."""
    if target.compiler == "zig":
        words = {"c++": "c++", "c": "cc"}[language], "-target", target.name
        return [str(tool(build, f"{language}-{target.name}", *words))]
    return [target.compiler] if language == "c++" else [target.compiler, "-x", "c"]


def compile_library(build: Path, target: Target) -> Path:
    """Build the C library for a target; warnings are errors."""
    folder = build / target.name
    level = QUICK if target.sets else ("-O0", *QUICK[1:])  # what only has to compile
    if target.compiler == "zig":  # which would build the system's libraries to link CMake's tests
        level += ("-c",)
    options = {
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_CXX_COMPILER": compiler(build, target, "c++")[0],
        "CMAKE_CXX_FLAGS": " ".join(level),
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",  # nothing is linked to find out
        "CMAKE_MAKE_PROGRAM": build / "zig/bin/ninja",
        "BUILD_SHARED_LIBS": "OFF",
        "MULTIHEAD_WERROR": "ON",
    }
    if target.compiler == "zig":
        options |= {f"CMAKE_{x.upper()}": tool(build, x, x) for x in ("ar", "ranlib")}
    cmake, settings = build / "zig/bin/cmake", [f"-D{x}={y}" for x, y in options.items()]
    command = [cmake, "-G", "Ninja", "-S", ROOT, "-B", folder, *settings]
    for words in (command, [cmake, "--build", folder]):
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{target.name}: {done.stdout}")
    return next(path for path in folder.iterdir() if path.suffix in (".a", ".lib"))


def compile_program(build: Path, target: Target, source: str, library: Path) -> Path:
    """Link one of the native tests with the library of a target."""
    program = library.parent / (source + (".exe" if target.system == "Windows" else ""))
    code = library.parent / (source + ".o")
    if source.endswith(".c"):
        standard = [*compiler(build, target, "c"), "-std=c11", "-D_POSIX_C_SOURCE=200112L"]
    else:
        standard = [*compiler(build, target, "c++"), "-std=c++20", "-ffp-contract=off"]
    for command in (
        [*standard, *QUICK, "-c", NATIVE / source, "-o", code],
        [compiler(build, target, "c++")[0], *QUICK, "-static", code, library, "-o", program],
    ):
        subprocess.run([str(word) for word in command], check=True)
    return program


def run(target: Target, program: Path, **environment: str) -> str:
    """Run a target's program and return what it prints.

    An emulator that falls over its threads (qemu 7 does, one time in twenty or so) has another try;
    that is said.
    """
    quiet = {"WINEDEBUG": "-all", "WINEPREFIX": str(program.parent / "wine")}
    words = [target.runner, str(program)] if target.runner else [str(program)]
    for tries in range(3, 0, -1):
        process = subprocess.run(
            words, env=os.environ | quiet | environment, capture_output=True, text=True, timeout=600
        )
        if tries == 1 or FELL not in process.stderr:
            break
        print(f"{target.name}: {program.name}: {process.stderr.strip()}; again", flush=True)
    if process.returncode != 0:
        raise SystemExit(f"{target.name}: {program.name}: {process.stdout}{process.stderr}")
    return process.stdout.replace("\r", "")


def can_run(name: str) -> bool:
    """Whether this processor has what a kernel set of x86-64 needs; qemu has all of its own."""
    flags = {"avx512": "avx512f", "amx": "amx_bf16"}
    flag = flags.get(name, name)
    return name == "baseline" or name in ARM or flag in Path("/proc/cpuinfo").read_text().split()


def check(build: Path, target: Target) -> str:
    """Build for a target and run what can be run; return what was found to be right."""
    for name in (target.compiler, target.runner):
        if name not in ("", "zig") and shutil.which(name) is None:
            raise SystemExit(f"{target.name}: needs {name} (Debian: apt install {PACKAGES[name]})")
    library = compile_library(build, target)
    if not target.sets:
        return "compiles"
    digest = compile_program(build, target, "digest.cpp", library)
    right = []
    for name in filter(can_run, target.sets):
        wrong = set(run(target, digest, MULTIHEAD_ISA=name).splitlines()) - RECORDED
        if wrong:
            raise SystemExit(f"{target.name}: {name}: not in digests.txt: {sorted(wrong)}")
        right.append(name)
    program = compile_program(build, target, "bnns_program.c", library)
    last = run(target, program).splitlines()[-1]
    if last != "passed":
        raise SystemExit(f"{target.name}: bnns_program.c: {last}")
    return "right on " + ", ".join(right) + ", and in C"


def main() -> None:
    """Check the targets named after the build directory, or all of them."""
    build = Path(sys.argv[1]).resolve() / "cross"
    build.mkdir(parents=True, exist_ok=True)
    install(build)
    for target in TARGETS:
        if not sys.argv[2:] or target.name in sys.argv[2:]:
            print(f"{target.name}: {check(build, target)}", flush=True)


if __name__ == "__main__":
    main()
