"""XLA's threads and the engine's in one program: they must not stand in each other's way.

Whatever runs between XLA's products has its threads fall asleep, an operation of its own too: what
that costs is measured with calls in our place that work as long, on the calling thread alone.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import multihead as mh
from benchmarks.cases import SHAPES, Shape
from benchmarks.targets.jax_attention import told, with_jax
from benchmarks.targets.target import Reached, Run, Target, paired

if TYPE_CHECKING:
    from benchmarks.jax_calls import Jitted

DEPTH = 4
ROUNDS = 10**6  # of a busy call, to learn how long they take

Operation = Callable[[Any], Any]


def attention(shape: Shape) -> Operation:
    """Return our attention of x (N, L, E) with itself."""
    from multihead.jax import dot_product_attention

    def attend(x: Any) -> Any:
        heads = x.reshape(*x.shape[:2], shape.num_heads, shape.head_dim)
        return dot_product_attention(heads, heads, heads).reshape(x.shape)

    return attend


def busy(rounds: int) -> Operation:
    """Return a call that works for some time on the calling thread."""
    import jax

    from benchmarks.jax_calls import register

    def work(x: Any) -> Any:
        call = jax.ffi.ffi_call(register("busy_call"), jax.ShapeDtypeStruct(x.shape, x.dtype))
        return call(x, rounds=np.int64(rounds))

    return work


def program(shape: Shape, linear: bool = True, between: Operation | None = None) -> Jitted:
    """Return a jitted program of XLA's products and an operation in turn, or of one kind alone."""
    from benchmarks.jax_calls import Jitted, normal

    x = normal(0, shape.batch, shape.length, shape.embed_dim)
    size = (DEPTH, shape.embed_dim, shape.embed_dim)
    weights = normal(1, *size) / np.float32(shape.embed_dim**0.5)

    def run(x: Any, weights: Any) -> Any:
        for i in range(DEPTH):
            if linear:
                x = x @ weights[i]
            if between:
                x = between(x)
        return x

    return Jitted(run, x, weights)


def rounds_of(run: Run, shape: Shape, step: Jitted) -> int:
    """Return the rounds of busy calls that make a program of them take as long as a step."""
    none, some = (program(shape, False, busy(rounds)) for rounds in (0, ROUNDS))
    seconds = run.race({"step": step, "none": none, "some": some}, parts=4).values()
    rounds = zip(*seconds, strict=True)
    share: float = median((long - copy) / (work - copy) for long, copy, work in rounds)
    return max(round(ROUNDS * share), 0)


def loss(both: list[float], theirs: list[float], between: list[float]) -> list[float]:
    """Return the time of a program over the sum of its parts' alone, in each round."""
    return paired(both, [a + b for a, b in zip(theirs, between, strict=True)])


def _coexistence(name: str, shape: Shape, single: bool) -> Target:
    @with_jax
    def measure(run: Run) -> Reached:
        before = mh.get_num_threads()
        mh.set_num_threads(1 if single else run.threads)
        try:
            ours = attention(shape)
            alone = program(shape, False, ours)
            as_long = busy(rounds_of(run, shape, alone))
            seconds = run.race(
                {
                    "both": program(shape, True, ours),
                    "XLA": program(shape),
                    "ours": alone,
                    "XLA with busy calls": program(shape, True, as_long),
                    "busy calls": program(shape, False, as_long),
                }
            )
        finally:
            mh.set_num_threads(before)
        both, theirs, own, with_busy, calls = seconds.values()
        mine, bare = loss(both, theirs, own), loss(with_busy, theirs, calls)
        ratios = f"time / sum of both alone {median(mine):.2f}x, busy calls {median(bare):.2f}x"
        return Reached(
            median(paired(mine, [max(x, 1) for x in bare])), f"{ratios}; {told(seconds)}"
        )

    threads = "one thread" if single else "all threads"
    return Target(
        name,
        f"{DEPTH} products of XLA's and {DEPTH} of our attention in turn under jit at {shape}, "
        f"{threads} of ours: time / sum of both alone, over busy calls' if above 1",
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
