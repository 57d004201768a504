"""Targets of the threads: what a second one brings, and what waking it costs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from benchmarks import native
from benchmarks.cases import Case, Mode, Shape
from benchmarks.machine import Limit
from benchmarks.targets.grid import LONG
from benchmarks.targets.target import Reached, Run, Target, paired
from multihead import _native

REGIONS = 20_000


def speedups(run: Run, step: Callable[[], None], parts: int = 1) -> list[float]:
    """Return in each round how much faster a step is with 2 threads than with 1."""

    def with_threads(threads: int) -> Callable[[], None]:
        def call() -> None:
            _native.set_num_threads(threads)
            step()

        return call

    try:
        seconds = run.race({"one": with_threads(1), "two": with_threads(2)}, parts)
    finally:
        _native.set_num_threads(run.threads)
    return paired(seconds["one"], seconds["two"])


def best(ratios: list[float]) -> float:
    """Return the figure that counts: other programs can only have made the others worse."""
    return max(ratios)


def _scaling(shape: Shape) -> Target:
    def measure(run: Run) -> Reached:
        one, two = (max(Limit(threads)() for _ in range(5)) for threads in (1, 2))
        found = [
            best(speedups(run, run.step(Case(shape, Mode(word, training=word == "train"))), 2))
            for word in ("infer", "train")
        ]
        note = "infer {:.2f}x, train {:.2f}x".format(*found)
        return Reached(min(found), f"{note}; FMA alone {two / one:.2f}x")

    return Target(
        f"threads-{shape.length}",
        f"2 threads against 1 at {shape}: best of paired runs, infer and train",
        1.85,
        measure,
    )


def _region(run: Run) -> Reached:
    seconds = [native.region_seconds(REGIONS, run.threads) for _ in range(5)]
    return Reached(1e6 * median(seconds), f"{run.threads} threads")


TARGETS = (
    *(_scaling(shape) for shape in LONG),
    Target(
        "region",
        "an empty parallel region of the engine's pool (built alone), its workers spinning",
        1.0,
        _region,
        at_most=True,
        form="{:.2f} us",
        quick=True,
    ),
)
