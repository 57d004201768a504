"""Targets of the options that today's models have: what each costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.problem import Array
from benchmarks.targets.target import Reached, Run, Target
from multihead import MultiheadAttention, Ragged, Rope
from multihead.functional import (
    alibi_slopes,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

HEADS, LENGTH, HEAD_DIM = 8, 2048, 64
LONG, WINDOW, CHUNK = 8192, 512, 512
PACKED = (64, 1024, 512, 37, 2048, 700, 128, 300)


def normal(*shape: int) -> Array:
    """Draw numbers that are the same for the same shape."""
    drawn: Array = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)
    return drawn


class Attention:
    """Attention with some options, forward, and backward in training."""

    def __init__(self, training: bool, q: Any, k: Any, v: Any, **options: Any) -> None:
        self.inputs, self.training, self.options = (q, k, v), training, options
        self.d_out = q

    def __call__(self) -> None:
        """Run it."""
        options = self.options | {"enable_gqa": True, "return_cache": self.training}
        found = scaled_dot_product_attention(*self.inputs, **options)
        if self.training:
            scaled_dot_product_attention_backward(self.d_out, found[1])


Contest = tuple[Callable[[], None], Callable[[], None]]


def _cost(name: str, what: str, bound: float, contests: Callable[[], dict[str, Contest]]) -> Target:
    """Hold the larger of the ratios of what costs and what it is held against."""

    def measure(run: Run) -> Reached:
        made = contests()
        found = {word: run.ratio(*steps, parts=len(made)) for word, steps in made.items()}
        told = ", ".join(f"{word} {ratio:.3f}x" for word, ratio in found.items())
        return Reached(max(found.values()), told)

    return Target(name, what, bound, measure, at_most=True, form="{:.3f}x", quick=True)


def _both(heads: int, length: int, options: dict[str, Any]) -> dict[str, Contest]:
    q, k, v = (normal(1, heads, length, HEAD_DIM) for _ in range(3))
    return {
        word: (Attention(training, q, k, v, **options), Attention(training, q, k, v))
        for word, training in (("infer", False), ("train", True))
    }


def _grouped() -> dict[str, Contest]:
    q, k = normal(1, HEADS, LENGTH, HEAD_DIM), normal(1, HEADS // 4, LENGTH, HEAD_DIM)
    return {"train": (Attention(True, q, k, k), Attention(True, q, q, q))}


def _chunked(run: Run) -> Reached:
    q = normal(1, HEADS, LONG, HEAD_DIM)
    last = np.ascontiguousarray(q[:, :, -CHUNK:])
    part = Attention(False, last, q, q, is_causal=True, query_offset="end")
    ratio = run.ratio(part, Attention(False, q, q, q, is_causal=True))
    pairs = CHUNK * (LONG - CHUNK) + CHUNK * (CHUNK + 1) / 2
    share = pairs / (LONG * (LONG + 1) / 2)
    return Reached(ratio / share, f"{ratio:.3f} of the time for {share:.3f} of the scores")


def _packed() -> dict[str, Contest]:
    total = sum(PACKED)
    offsets = np.cumsum([0, *PACKED])
    rows = normal(total, HEADS, HEAD_DIM)
    ragged = Ragged(rows, offsets)
    parts = [rows[a:b].swapaxes(0, 1)[None] for a, b in pairwise(offsets)]  # of the same memory

    def alone(training: bool) -> Callable[[], None]:
        steps = [Attention(training, x, x, x, is_causal=True) for x in parts]

        def all_of_them() -> None:
            for step in steps:
                step()

        return all_of_them

    return {
        word: (Attention(training, ragged, ragged, ragged, is_causal=True), alone(training))
        for word, training in (("infer", False), ("train", True))
    }


class Layer:
    """A layer's step of one input, batch first."""

    def __init__(self, training: bool, **options: Any) -> None:
        self.layer = MultiheadAttention(512, 8, batch_first=True, seed=0, **options)
        self.layer.train(training)
        self.x = normal(4, 512, 512)
        self.d_x = np.empty_like(self.x)

    def __call__(self) -> None:
        """Run it."""
        x = self.x
        out, _ = self.layer(x, x, x, need_weights=False, is_causal=True)
        if self.layer.training:
            self.layer.backward(out, out=(self.d_x,) * 3)


def _rotary() -> dict[str, Contest]:
    return {
        word: (Layer(training, rope=Rope()), Layer(training))
        for word, training in (("infer", False), ("train", True))
    }


_ALONE = f"attention alone, L = {LENGTH}, H = {HEADS}, D = {HEAD_DIM}"
TARGETS = (
    _cost(
        "modern-grouped",
        f"{_ALONE}, train: 4 query heads a key head / as many key heads",
        1.02,
        _grouped,
    ),
    _cost(
        "modern-window",
        f"attention alone, L = {LONG}, H = 2, infer and train: window of {WINDOW} / dense",
        0.10,
        lambda: _both(2, LONG, {"window": (WINDOW - 1, 0)}),
    ),
    _cost(
        "modern-rotary",
        "layer, N = 4, L = 512, E = 512, H = 8, infer and train: rotary positions / none",
        1.03,
        _rotary,
    ),
    _cost(
        "modern-alibi",
        f"{_ALONE}, infer and train: ALiBi / none",
        1.05,
        lambda: _both(HEADS, LENGTH, {"alibi_slopes": np.array(alibi_slopes(HEADS), np.float32)}),
    ),
    _cost(
        "modern-softcap",
        f"{_ALONE}, infer and train: capped scores / none",
        1.25,
        lambda: _both(HEADS, LENGTH, {"softcap": 30.0}),
    ),
    Target(
        "modern-chunked",
        f"causal, the last {CHUNK} queries of {LONG}, H = {HEADS}: time / their share of one pass",
        1.05,
        _chunked,
        at_most=True,
        form="{:.3f}x",
        quick=True,
    ),
    _cost(
        "modern-packed",
        f"{len(PACKED)} packed sequences of {min(PACKED)} to {max(PACKED)}, H = {HEADS}, infer and "
        "train: together / one after another",
        1.05,
        _packed,
    ),
)
