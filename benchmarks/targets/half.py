"""Targets of half precision against our own float32: time, memory, and a cache of half the size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from statistics import geometric_mean

import numpy as np

from benchmarks.cases import SHAPES, Case, Mode, Shape
from benchmarks.machine import instructions, kernel_set
from benchmarks.problem import Array, numpy_dtype
from benchmarks.targets.grid import LONG, SMALL
from benchmarks.targets.processes import MEMORY, peak
from benchmarks.targets.target import Reached, Run, Target
from multihead import _native
from multihead.functional import scaled_dot_product_attention

# what each set of kernels for bfloat16 needs, and what it is held to where attention is long
SETS: dict[str, tuple[str, float | None]] = {
    "avx512_bf16": ("avx512_bf16", 1.6),
    "amx": ("amx_bf16", None),
    "neon_bf16": ("bf16", None),
}
AMX = SETS["amx"][0]
# those that widen bfloat16 to float32, the best first
WIDENING = ("avx512", "avx2", "neon", "baseline")

HEADS, HEAD_DIM, KEYS = 16, 64, 32768


def absent(name: str) -> str:
    """Say why there is no such kernel set; empty if there is."""
    if name in _native.available_isas():
        return ""
    needed = SETS[name][0]
    if needed not in instructions():
        return f"this CPU has no {needed}"
    return f"this CPU has {needed}, but the engine offers {', '.join(_native.available_isas())}"


def beside_float32(run: Run, case: Case, dtype: str, parts: int) -> float:
    """Return the time of our float32 over ours in a dtype, on the kernel set in use."""
    return run.ratio(run.step(case), run.step(case, dtype), parts)


def _ratios(run: Run, shapes: Sequence[Shape], word: str, dtype: str) -> dict[Shape, float]:
    mode = Mode(word, training=word == "train")
    return {shape: beside_float32(run, Case(shape, mode), dtype, len(shapes)) for shape in shapes}


def _told(name: str, found: dict[Shape, float]) -> str:
    return f"{name}: " + ", ".join(f"{shape} {ratio:.2f}x" for shape, ratio in found.items())


# bfloat16 with instructions of its own


def _native_set(name: str, word: str) -> Target:
    def measure(run: Run) -> Reached:
        if reason := absent(name):
            return Reached(None, reason)
        with kernel_set(name):
            found = _ratios(run, LONG[:1] if run.quick else LONG, word, "bfloat16")
        if name == "avx512_bf16" and AMX in instructions():
            slow = "not counted: where there is AMX, vdpbf16ps multiplies at half the rate of FMA"
            return Reached(None, f"{slow}; {_told(name, found)}")
        return Reached(min(found.values()), _told(name, found))

    return Target(
        f"{name}-{word}",
        f"bfloat16, {word}, L >= 512, D = 64, on {name}: our float32 / ours, the lowest",
        SETS[name][1],
        measure,
        quick=True,
    )


# half precision that is widened


def _widened(name: str, what: str, word: str, dtype: str, bound: float) -> Target:
    def measure(run: Run) -> Reached:
        own = dtype == "float16"
        used = _native.isa() if own else next(x for x in WIDENING if x in _native.available_isas())
        with kernel_set(used):
            found = _ratios(run, SMALL if run.quick else SHAPES, word, dtype)
        return Reached(geometric_mean(found.values()), _told(used, found))

    return Target(
        f"{name}-{word}",
        f"{what}, {word}: our float32 / ours, geometric mean of the grid's shapes",
        bound,
        measure,
        quick=True,
    )


# memory


def _memory(run: Run) -> Reached:
    if not sys.platform.startswith("linux"):
        return Reached(None, "it reads /proc")
    half, whole = (peak(run.threads, MEMORY, dropout=0.1, dtype=x) for x in ("bfloat16", "float32"))
    return Reached(half / whole, f"{half / 1e6:.0f} of {whole / 1e6:.0f} MB")


# decoding


def _attend(q: Array, k: Array, v: Array) -> Callable[[], None]:
    def call() -> None:
        scaled_dot_product_attention(q, k, v)

    return call


def _decode(run: Run) -> Reached:
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal((1, HEADS, tokens, HEAD_DIM), dtype=np.float32)
        for tokens in (1, KEYS, KEYS)
    )
    half = _attend(q, *(x.astype(numpy_dtype("bfloat16")) for x in (k, v)))
    try:
        half()
    except TypeError as error:
        return Reached(None, f"refused: {error}")
    return Reached(run.ratio(half, _attend(q, k, v)))


TARGETS = (
    *(_native_set(name, word) for name in SETS for word in ("train", "infer")),
    Target(
        "half-memory",
        f"bfloat16, train + dropout 0.1 at {MEMORY} with out=: peak extra memory / float32's",
        0.6,
        _memory,
        at_most=True,
        quick=True,
    ),
    Target(
        "half-decode",
        f"one float32 query, {KEYS} keys, H = {HEADS}, D = {HEAD_DIM}: bfloat16 keys and values / "
        "float32 ones",
        0.6,
        _decode,
        at_most=True,
        quick=True,
    ),
    *(_widened("float16", "float16", word, "float16", 1.0) for word in ("train", "infer")),
    *(
        _widened("widened", "bfloat16 without its instructions", word, "bfloat16", 0.95)
        for word in ("train", "infer")
    ),
)
