"""Targets of one new token against cached keys: memory's speed, and others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks import native
from benchmarks.decoders import decoders
from benchmarks.measure import compare
from benchmarks.problem import Array
from benchmarks.suite import TOLERANCE
from benchmarks.targets.modern import normal
from benchmarks.targets.target import Reached, Run, Target, paired
from multihead import _native
from multihead.functional import scaled_dot_product_attention

HEADS, HEAD_DIM = 8, 64


@dataclass(frozen=True)
class Setting:
    """One new token of each sequence, and the keys that it reads."""

    batch: int
    key_heads: int
    keys: int

    def __str__(self) -> str:
        return f"({self.batch}, {HEADS // self.key_heads}, {self.keys})"


SETTINGS = tuple(
    Setting(batch, key_heads, keys)
    for keys in (4096, 32768)
    for batch in (1, 8)
    for key_heads in (HEADS, HEADS // 4)
    if batch * key_heads * keys <= 8 * 2 * 32768  # what memory holds twice
)


def _arrays(at: Setting) -> tuple[Array, Array, Array]:
    keys = normal(at.batch, at.key_heads, at.keys, HEAD_DIM)
    return normal(at.batch, HEADS, 1, HEAD_DIM), keys, np.ascontiguousarray(keys[..., ::-1])


def _ours(q: Array, k: Array, v: Array) -> Callable[[], Any]:
    return lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _reading(k: Array, v: Array, threads: int) -> Callable[[], None]:
    return lambda: native.read(_native.isa(), (k, v), threads)


def _bandwidth(run: Run) -> Reached:
    found = {}
    for at in SETTINGS[:2] if run.quick else SETTINGS:
        q, k, v = _arrays(at)
        seconds = run.race(
            {
                "reading": _reading(k, v, run.threads),
                "ours": _ours(q, k, v),
            },
            parts=len(SETTINGS),
        )
        share = median(paired(seconds["reading"], seconds["ours"]))
        found[at] = share, (k.nbytes + v.nbytes) / median(seconds["ours"]) / 1e9
    told = ", ".join(f"{at} {share:.2f} {rate:.0f} GB/s" for at, (share, rate) in found.items())
    return Reached(min(share for share, _ in found.values()), f"(N, H / Hk, keys): {told}")


def _peers(run: Run) -> Reached:
    found: dict[Setting, tuple[float, str]] = {}
    missing: dict[str, str] = {}
    for at in SETTINGS[:2] if run.quick else SETTINGS:
        q, k, v = _arrays(at)
        others, absent = decoders(q, k, v, run.threads)
        missing |= absent
        if not others:
            continue
        ours = _ours(q, k, v)
        for other in others.values():
            compare({"out": ours()}, {"out": other()}, TOLERANCE)
        seconds = run.race({"ours": ours} | others, parts=len(SETTINGS))
        found[at] = min((median(paired(seconds[name], seconds["ours"])), name) for name in others)
    if not found:
        return Reached(None, "; ".join(f"{name} {why}" for name, why in missing.items()))
    told = ", ".join(f"{at} {ratio:.2f}x {name}" for at, (ratio, name) in found.items())
    notes = [f"(N, H / Hk, keys), the best other: {told}", *map(" ".join, missing.items())]
    return Reached(min(ratio for ratio, _ in found.values()), "; ".join(notes))


_WHAT = f"one new token, H = {HEADS}, D = {HEAD_DIM}"
TARGETS = (
    Target(
        "decode-bandwidth",
        f"{_WHAT}: time to read keys and values once / ours, the lowest",
        0.85,
        _bandwidth,
        quick=True,
    ),
    Target(
        "decode-peers",
        f"{_WHAT}: the best other's time / ours, the lowest",
        1.0,
        _peers,
        quick=True,
    ),
)
