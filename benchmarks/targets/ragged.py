"""Targets of ragged batches: work in proportion to real tokens, on all threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.cases import Case, Mode
from benchmarks.targets.layer import PADDED
from benchmarks.targets.target import Reached, Run, Target
from benchmarks.targets.threads import best, speedups
from multihead.layer import MultiheadAttention
from multihead.ragged import Ragged

UNEVEN = (4096, *(16,) * 60)


def ragged_flops(lengths: Sequence[int], embed_dim: int, training: bool) -> int:
    """Count the operations of self-attention on sequences of these lengths, as `Case.flops`.

    Examples
    --------
    >>> from benchmarks.cases import Shape
    >>> ragged_flops([8, 8], 16, True) == Case(Shape(2, 8, 16, 4), Mode("", training=True)).flops()
    True
    """
    projections = 8 * embed_dim * embed_dim * sum(lengths)
    attention = 4 * embed_dim * sum(length * length for length in lengths)
    return 3 * projections + attention * 14 // 4 if training else projections + attention


class RaggedStep:
    """The layer on a ragged batch; a training step is that of the grid."""

    def __init__(
        self, lengths: Sequence[int], embed_dim: int, num_heads: int, training: bool
    ) -> None:
        rng = np.random.default_rng(0)
        size = (int(sum(lengths)), embed_dim)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.layer = MultiheadAttention(embed_dim, num_heads, seed=0).train(training)
        self.training = training
        self.x, self.d_out = (
            Ragged(rng.standard_normal(size, dtype=np.float32), offsets) for _ in range(2)
        )
        self.d_x = Ragged(np.zeros(size, np.float32), offsets)

    def __call__(self) -> None:
        """Run forward, and backward in training."""
        x, d_x = self.x, self.d_x
        if self.training:
            self.layer.zero_grad()
        self.layer(x, x, x, need_weights=False)
        if self.training:
            self.layer.backward(self.d_out, out=(d_x, d_x, d_x))


def _proportion(training: bool) -> Target:
    word = "train" if training else "infer"
    dense = Case(PADDED, Mode(word, training=training))
    lengths = Case(PADDED, Mode("", padding=True)).lengths().tolist()
    work = ragged_flops(lengths, PADDED.embed_dim, training) / dense.flops()

    def measure(run: Run) -> Reached:
        ragged = RaggedStep(lengths, PADDED.embed_dim, PADDED.num_heads, training)
        time = run.ratio(ragged, run.step(dense))
        return Reached(time / work, f"time {time:.3f}x, work {work:.3f}x of the dense")

    return Target(
        f"ragged-{word}",
        f"{word}, the padding target's batch ragged: (time / dense time) / (work / dense work)",
        1.1,
        measure,
        at_most=True,
        quick=True,
    )


def _balance(run: Run) -> Reached:
    found = [
        best(speedups(run, RaggedStep(UNEVEN, 512, 8, training), parts=2))
        for training in (False, True)
    ]
    return Reached(min(found), "infer {:.2f}x, train {:.2f}x".format(*found))


TARGETS = (
    _proportion(training=False),
    _proportion(training=True),
    Target(
        "ragged-balance",
        "one sequence of 4096 beside 60 of 16, E = 512, H = 8: 2 threads against 1",
        None,
        _balance,
    ),
)
