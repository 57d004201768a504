"""XLA's threads and the engine's in one program: they must not stand in each other's way."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import multihead as mh
from benchmarks.cases import SHAPES, Shape
from benchmarks.targets.jax_attention import told, with_jax
from benchmarks.targets.target import Reached, Run, Target

DEPTH = 4


def program(shape: Shape, linear: bool, attention: bool) -> Callable[[], None]:
    """Return a jitted program of XLA's products and our attention in turn, or of one kind alone."""
    from benchmarks.jax_calls import Jitted, normal
    from multihead.jax import dot_product_attention

    x = normal(0, shape.batch, shape.length, shape.embed_dim)
    size = (DEPTH, shape.embed_dim, shape.embed_dim)
    weights = normal(1, *size) / np.float32(shape.embed_dim**0.5)

    def run(x: Any, weights: Any) -> Any:
        for i in range(DEPTH):
            if linear:
                x = x @ weights[i]
            if attention:
                heads = x.reshape(*x.shape[:2], shape.num_heads, shape.head_dim)
                x = dot_product_attention(heads, heads, heads).reshape(x.shape)
        return x

    return Jitted(run, x, weights)


def _coexistence(name: str, shape: Shape, single: bool) -> Target:
    @with_jax
    def measure(run: Run) -> Reached:
        steps = {
            "both": program(shape, True, True),
            "XLA": program(shape, True, False),
            "ours": program(shape, False, True),
        }
        before = mh.get_num_threads()
        mh.set_num_threads(1 if single else run.threads)
        try:
            seconds = run.race(steps)
        finally:
            mh.set_num_threads(before)
        rounds = zip(seconds["both"], seconds["XLA"], seconds["ours"], strict=True)
        value = median(both / (theirs + ours) for both, theirs, ours in rounds)
        return Reached(value, told(seconds))

    threads = "one thread" if single else "all threads"
    return Target(
        name,
        f"{DEPTH} products of XLA's and {DEPTH} of our attention in turn under jit at {shape}, "
        f"{threads} of ours: time / sum of both alone",
        1.05,
        measure,
        at_most=True,
        quick=shape.length <= 128,
    )


TARGETS = tuple(
    _coexistence(f"jax-coexist-{word}-{'one' if single else 'all'}", shape, single)
    for word, shape in (("small", SHAPES[0]), ("middle", SHAPES[1]), ("large", SHAPES[3]))
    for single in (True, False)
)
