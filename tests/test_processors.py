"""Which kernel sets a processor runs: by every bit of CPUID, by the groups and masks around it."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_sets import COMPILER, PAIRS, ROOT, SETS
from scripts import printed, run

pytestmark = pytest.mark.timeout(120)
X86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="options of x86-64's compilers"
)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's files")

WORDS = ("leaf1", "leaf7", "leaf7_edx", "leaf7_1", "saved")
# What a macro of the compiler's stands for: a word and a bit, as the manuals have them.
BITS = {
    "__SSE3__": ("leaf1", 0),
    "__SSSE3__": ("leaf1", 9),
    "__FMA__": ("leaf1", 12),
    "__SSE4_1__": ("leaf1", 19),
    "__SSE4_2__": ("leaf1", 20),
    "__CRC32__": ("leaf1", 20),
    "__POPCNT__": ("leaf1", 23),
    "__XSAVE__": ("leaf1", 26),
    "__AVX__": ("leaf1", 28),
    "__F16C__": ("leaf1", 29),
    "__AVX2__": ("leaf7", 5),
    "__AVX512F__": ("leaf7", 16),
    "__AVX512DQ__": ("leaf7", 17),
    "__AVX512BW__": ("leaf7", 30),
    "__AVX512VL__": ("leaf7", 31),
    "__AMX_BF16__": ("leaf7_edx", 22),
    "__AMXBF16__": ("leaf7_edx", 22),
    "__AMX_TILE__": ("leaf7_edx", 24),
    "__AMXTILE__": ("leaf7_edx", 24),
    "__AVX512BF16__": ("leaf7_1", 5),
}
# Macros of these options that are no instructions.
OTHERS = ("__BIGGEST_ALIGNMENT__", "__FP_FAST_FMA", "__EVEX", "__AVX10")
# The system saves registers, and what it saves of which sets: OSXSAVE and XCR0.
SAVED = {"leaf1": {27}, "saved": {1, 2}}
SAVED_512, SAVED_TILES = {5, 6, 7}, {17, 18}

PROGRAM = """
#include "x86_features.h"
using namespace multihead::platform;
extern "C" int sets(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e) {
  const X86Bits found{a, b, c, d, e};
  return has_avx2(found) | has_avx512(found) << 1 | has_avx512_bf16(found) << 2 |
         has_amx(found) << 3;
}
"""
NAMES = ("avx2", "avx512", "avx512_bf16", "amx")


def compiled(folder: Path, code: str, *sources: str, options: tuple[str, ...] = ()) -> Path:
    """Compile code against the headers of csrc/platform."""
    platform_folder = ROOT / "csrc" / "platform"
    source, made = folder / "code.cpp", folder / "made"
    source.write_text(code)
    words = [COMPILER, "-std=c++20", "-O1", f"-I{platform_folder}", *options, source]
    words += [*(platform_folder / name for name in sources), "-o", made]
    subprocess.run([str(word) for word in words], check=True, timeout=100)
    return made


def macros(options: list[str]) -> set[str]:
    """The macros that a compiler defines with these options alone."""
    found = []
    for words in ([], options):
        done = subprocess.run(
            [COMPILER, *words, "-x", "c++", "-dM", "-E", os.devnull],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        found.append({line.split()[1] for line in done.stdout.splitlines()})
    return found[1] - found[0]


def needed(name: str) -> dict[str, set[int]]:
    """The bits without which a set must not run: what its options let the compiler use."""
    options = [x for x in (SETS[name] if name in SETS else PAIRS[name]) if x.startswith("-m")]
    bits = {word: set(SAVED.get(word, ())) for word in WORDS}
    for macro in macros(options):
        if not macro.startswith(OTHERS):
            word, bit = BITS[macro]
            bits[word].add(bit)
    if name != "avx2":
        bits["leaf1"].add(29)  # Clang has F16C in AVX-512
        bits["saved"] |= SAVED_512
    if name == "amx":
        bits["saved"] |= SAVED_TILES
    return bits


@X86
def test_a_set_asks_for_all_that_its_compiler_may_use_and_for_nothing_else(
    tmp_path: Path,
) -> None:
    library = ctypes.CDLL(str(compiled(tmp_path, PROGRAM, options=("-shared", "-fPIC"))))

    def sets(words: dict[str, int]) -> set[str]:
        found = library.sets(*(ctypes.c_uint32(words[word]) for word in WORDS))
        return {name for i, name in enumerate(NAMES) if found >> i & 1}

    everything = dict.fromkeys(WORDS, 2**32 - 1)
    assert sets(everything) == set(NAMES)
    assert sets(dict.fromkeys(WORDS, 0)) == set()
    bits = {name: needed(name) for name in NAMES}
    for word in WORDS:
        for bit in range(32):
            expected = {name for name in NAMES if bit not in bits[name][word]}
            assert sets(everything | {word: everything[word] ^ 1 << bit}) == expected, (word, bit)
    for name in NAMES:
        least = {word: sum(1 << bit for bit in bits[name][word]) for word in WORDS}
        assert name in sets(least)
    draw = random.Random(0)
    for _ in range(5000):
        words = {word: draw.getrandbits(32) | draw.choice((0, 2**32 - 1)) for word in WORDS}
        expected = {
            name
            for name in NAMES
            if all(words[word] >> bit & 1 for word in WORDS for bit in bits[name][word])
        }
        assert sets(words) == expected, words


def test_a_set_that_the_processor_lacks_is_refused() -> None:
    for name in ("avx1024", "neon" if "86" in platform.machine() else "avx2", "AVX2", " "):
        done = run("import multihead", MULTIHEAD_ISA=name)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(
            "ImportError: MULTIHEAD_ISA: expected one of"
        )
        assert done.stderr.endswith(f"(what this CPU can run), got '{name}'\n")


QUOTA = """
#include <cstdio>
#include "cgroups.h"
int main(int, char** words) { std::printf("%g", multihead::platform::cgroup_quota(words[1])); }
"""


@pytest.fixture(scope="module")
def quota(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints the quota below a root."""
    return compiled(tmp_path_factory.mktemp("quota"), QUOTA, "cgroups_linux.cpp")


V1 = {"/proc/self/cgroup": "5:devices:/\n4:cpu,cpuacct:/a/b\n3:cpuset:/c\n1:name=systemd:/d\n"}
V2 = {"/proc/self/cgroup": "0::/a/b\n"}
TOP = "/sys/fs/cgroup"


@LINUX
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, "0", id="nothing"),
        pytest.param({f"{TOP}/cpu.max": "150000 100000\n"}, "1.5", id="a container of v2"),
        pytest.param({f"{TOP}/cpu.max": "max 100000\n"}, "0", id="no limit of v2"),
        pytest.param(V2 | {f"{TOP}/a/b/cpu.max": "50000 100000\n"}, "0.5", id="own group"),
        pytest.param(V2 | {f"{TOP}/a/cpu.max": "300000 100000\n"}, "3", id="the group around"),
        pytest.param(
            V2
            | {f"{TOP}/a/cpu.max": "200000 100000\n", f"{TOP}/a/b/cpu.max": "max 100000\n"}
            | {f"{TOP}/cpu.max": "400000 100000\n"},
            "2",
            id="the smallest",
        ),
        pytest.param({"/proc/self/cgroup": "0::/../x\n", f"{TOP}/cpu.max": "1 2"}, "0.5", id="up"),
        pytest.param(
            V1
            | {f"{TOP}/cpu/a/cpu.cfs_quota_us": "250000\n"}
            | {f"{TOP}/cpu/a/cpu.cfs_period_us": "100000\n"},
            "2.5",
            id="v1",
        ),
        pytest.param(
            {f"{TOP}/cpu/cpu.cfs_quota_us": "-1\n", f"{TOP}/cpu/cpu.cfs_period_us": "100000\n"},
            "0",
            id="no limit of v1",
        ),
        pytest.param({f"{TOP}/cpu/cpu.cfs_quota_us": "5\n"}, "0", id="no period"),
        *(
            pytest.param({f"{TOP}/cpu.max": words}, "0", id=f"nonsense: {words}")
            for words in ("", "\n", "abc def", "100 0", "-5 100", "nan nan", "inf 1", "1 inf", "5")
        ),
        pytest.param({"/proc/self/cgroup": "::\n0\n0::\n:\n0::////\n"}, "0", id="no groups"),
    ],
)
def test_the_quota_is_that_of_the_groups(
    files: dict[str, str], expected: str, quota: Path, tmp_path: Path
) -> None:
    for name, words in files.items():
        path = Path(f"{tmp_path}{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words)
    done = subprocess.run([quota, tmp_path], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == expected


NUMBER = """
import os, sys
os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:int(sys.argv[1])]))
import numpy as np
import multihead as mh
layer = mh.MultiheadAttention(64, 4, batch_first=True, seed=0)
x = np.random.default_rng(0).standard_normal((2, 200, 64)).astype(np.float32)
def step():
    out, _ = layer(x, x, x)
    return out.tobytes() + layer.backward(out)[0].tobytes()
number, once = mh.get_num_threads(), step()
mh.set_num_threads(7)
print(number, all(step() == once for _ in range(20)))
"""


@LINUX
def test_on_one_core_there_is_one_thread_and_more_of_them_work() -> None:
    assert printed(NUMBER, "1", MULTIHEAD_NUM_THREADS="", OMP_NUM_THREADS="") == "1 True\n"
