"""The benchmark's cases: the one list of shapes and modes, and the work in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Shape:
    """Self-attention over ``batch`` sequences of ``length`` tokens."""

    batch: int
    length: int
    embed_dim: int
    num_heads: int

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.embed_dim // self.num_heads

    def __str__(self) -> str:
        return f"({self.batch}, {self.length}, {self.embed_dim}, {self.num_heads})"


@dataclass(frozen=True)
class Mode:
    """How the layer is called: a forward pass, or a forward and a full backward one."""

    name: str
    training: bool = False
    padding: bool = False
    causal: bool = False
    weights: bool = False
    dropout: float = 0.0

    @property
    def dense(self) -> bool:
        """Whether every query attends to every key and nothing else is asked for."""
        return not (self.padding or self.causal or self.weights or self.dropout)


@dataclass(frozen=True)
class Case:
    """One cell of the grid.

    Examples
    --------
    >>> case = Case(Shape(2, 8, 16, 4), Mode("infer + padding", padding=True))
    >>> sorted(case.lengths().tolist())
    [3, 6]
    >>> case.pairs()
    72
    """

    shape: Shape
    mode: Mode

    def lengths(self) -> npt.NDArray[np.int64]:
        """Count the real keys of each sequence: spread evenly over L/4..L, in random order.

        Returns
        -------
        numpy.ndarray
            ``(N,)`` int64; all ``L`` in a mode without padding.
        """
        n, length = self.shape.batch, self.shape.length
        if not self.mode.padding:
            return np.full(n, length, dtype=np.int64)
        middles = (np.arange(n) + 0.5) / n
        lengths = np.floor(length * (0.25 + 0.75 * middles)).astype(np.int64)
        return np.random.default_rng(n).permutation(lengths)

    def pairs(self) -> int:
        """Count the pairs of a query and a key that it sees, over the batch (for one head)."""
        length = self.shape.length
        if self.mode.causal:
            return self.shape.batch * (length * (length + 1) // 2)
        return int(length * self.lengths().sum())

    def flops(self) -> int:
        """Count the floating-point operations that the result needs; hidden keys count nothing.

        The backward pass takes twice the projections' work and 10/4 of the attention's. Weights
        and dropout add nothing here, although they cost time.
        """
        embed_dim = self.shape.embed_dim
        queries = self.shape.batch * self.shape.length
        keys = int(self.lengths().sum())
        projections = 2 * embed_dim * embed_dim * (2 * queries + 2 * keys)
        attention = 4 * self.pairs() * embed_dim
        if not self.mode.training:
            return projections + attention
        return 3 * projections + attention * 14 // 4

    def __str__(self) -> str:
        return f"{self.shape} {self.mode.name}"


SHAPES = (
    Shape(1, 128, 256, 4),
    Shape(32, 128, 384, 12),
    Shape(8, 512, 768, 12),
    Shape(2, 1024, 768, 12),
    Shape(1, 2048, 1024, 16),
    Shape(1, 4096, 512, 8),
    Shape(64, 32, 128, 8),
)

MODES = (
    Mode("infer"),
    Mode("infer + padding", padding=True),
    Mode("infer + causal", causal=True),
    Mode("infer + weights", weights=True),
    Mode("train", training=True),
    Mode("train + padding", training=True, padding=True),
    Mode("train + causal", training=True, causal=True),
    Mode("train + dropout", training=True, dropout=0.1),
    Mode("train + weights", training=True, weights=True),
)

GRID = tuple(Case(shape, mode) for shape in SHAPES for mode in MODES)

# every mode of the two small shapes, and a few of a larger one
_QUICK_MODES = {
    SHAPES[0]: MODES,
    SHAPES[6]: MODES,
    SHAPES[3]: tuple(mode for mode in MODES if mode.dense or mode.padding or mode.dropout),
}
QUICK = tuple(Case(shape, mode) for shape, modes in _QUICK_MODES.items() for mode in modes)
