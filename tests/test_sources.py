"""What the C++ sources may say, and where: systems in platform/, frameworks in a face."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCES = sorted(CSRC.rglob("*.h")) + sorted(CSRC.rglob("*.cpp"))
PLACES = sorted({path.relative_to(CSRC).parts[0] for path in SOURCES})  # folders, and two files
# headers, functions and macros of one system, and words of GCC and Clang that another compiler
# lacks; vector types and shuffles, which the kernels are written in, are not among them
SYSTEM = re.compile(
    r"#\s*pragma (?!once)|__attribute__|__declspec|\basm\b"
    r"|__builtin_(?!inf\b|memcpy\b|shufflevector\b|convertvector\b)\w+"
    r"|\b(pthread|sched|clock|posix|dl)_?(open|sym|atfork|\w*affinity|get\w*time|getcpu\w*)\b"
    r"|\b(pthread_\w+|aligned_alloc|posix_memalign|madvise|mmap|sysconf|_aligned_\w+)\b"
    r"|<(sys/\w+|unistd|pthread|sched|dlfcn|windows|malloc)\.h>"
    r"|\b(__linux__|__gnu_linux__|__APPLE__|__GLIBC__|_WIN32|_MSC_VER)\b"
    r"|\bunsigned long\b|\blong (int|\w+ =)|\blong\("  # of 32 bits on Windows
)
FRAMEWORK = re.compile(r"torch|numpy|gomp|omp_(?!num_threads)|<omp\.h>|openmp", re.I)


def code(path: Path) -> list[tuple[int, str]]:
    """Numbered lines without comments."""
    return [
        (i, re.sub("//.*", "", line)) for i, line in enumerate(path.read_text().splitlines(), 1)
    ]


def found(pattern: re.Pattern[str], places: tuple[str, ...]) -> list[str]:
    """Where a pattern is found below some places in csrc."""
    return [
        f"{path.relative_to(CSRC)}:{i}: {line.strip()}"
        for path in SOURCES
        if path.relative_to(CSRC).parts[0] in places
        for i, line in code(path)
        if pattern.search(line)
    ]


def test_systems_are_named_in_platform_alone() -> None:
    lines = found(SYSTEM, tuple(place for place in PLACES if place != "platform"))
    vectors = r"kernels/(vec\w*|pairs)\.h:\d+: typedef .* __attribute__\(\((vector_size|aligned)"
    instructions = r"kernels/amx_tiles\.h:\d+: .*asm volatile"
    assert [line for line in lines if not re.match(f"{vectors}|{instructions}", line)] == []


@pytest.mark.parametrize("place", [place for place in PLACES if place != "python"])
def test_frameworks_are_named_in_their_face_alone(place: str) -> None:
    assert found(FRAMEWORK, (place,)) == []


def test_the_compiler_s_words_are_macros_alone() -> None:
    # kernels include it, and a function would be a weak symbol in their objects
    lines = [line for _, line in code(CSRC / "platform/compiler.h") if line.strip()]
    assert all(re.match(r"#\s*(define|if|else|elif|endif|pragma once|error)", x) for x in lines)
