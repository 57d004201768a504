"""Targets of the layer against itself: what dropout, padding and weights cost."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.cases import SHAPES, Case, Mode, Shape
from benchmarks.targets.target import Reached, Run, Target

PADDED = next(shape for shape in SHAPES if shape.length == 512)
LONG = next(shape for shape in SHAPES if shape.length == 2048)
LONGEST = next(shape for shape in SHAPES if shape.length == 4096)


def _cost(shape: Shape, above: Mode, below: Mode) -> Callable[[Run], Reached]:
    """Time in one mode over the time in another."""

    def measure(run: Run) -> Reached:
        return Reached(run.ratio(run.step(Case(shape, above)), run.step(Case(shape, below))))

    return measure


def _dropout(shape: Shape) -> Target:
    return Target(
        f"dropout-{shape.length}",
        f"train + dropout 0.1 at {shape}: time / time without dropout",
        1.15,
        _cost(
            shape,
            Mode("train + dropout", training=True, dropout=0.1),
            Mode("train", training=True),
        ),
        at_most=True,
        quick=shape.length == 2048,
    )


def _padding(training: bool) -> Target:
    word = "train" if training else "infer"
    padded = Case(PADDED, Mode(f"{word} + padding", training=training, padding=True))
    dense = Case(PADDED, Mode(word, training=training))

    def measure(run: Run) -> Reached:
        time = run.ratio(run.step(padded), run.step(dense))
        work = padded.flops() / dense.flops()
        return Reached(time / work, f"time {time:.3f}x, work {work:.3f}x of the dense")

    return Target(
        f"padding-{word}",
        f"{word} + padding at {PADDED}, lengths L/4..L: (time / dense time) / (work / dense work)",
        1.1,
        measure,
        at_most=True,
        quick=True,
    )


TARGETS = (
    _dropout(LONG),
    _dropout(LONGEST),
    _padding(training=False),
    _padding(training=True),
    Target(
        "weights-time",
        f"train + averaged weights at {LONG}: time / time without weights",
        1.5,
        _cost(
            LONG,
            Mode("train + weights", training=True, weights=True),
            Mode("train", training=True),
        ),
        at_most=True,
    ),
)
