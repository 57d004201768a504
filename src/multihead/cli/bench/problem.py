"""Shapes, and the numbers that every contender is given."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multihead.cli.elements import store, widen

PASSES = ("forward", "training")
PARAMETERS = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


class Shape(NamedTuple):
    """Sequences, tokens of each, width and heads of a layer's self-attention."""

    batch: int
    length: int
    width: int
    heads: int

    @property
    def head_dim(self) -> int:
        """The width of a head."""
        return self.width // self.heads

    def __str__(self) -> str:
        return f"({', '.join(map(str, self))})"


SHAPES = (Shape(32, 64, 256, 4), Shape(8, 256, 512, 8), Shape(1, 1024, 512, 8))


def shape(text: str) -> Shape:
    """Take a shape, ``N,L,E,H``.

    Examples
    --------
    >>> shape("8,256,512,8")
    Shape(batch=8, length=256, width=512, heads=8)
    >>> shape("8,256,500,8")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: expected a width E that the heads H divide, got '8,256,500,8'
    """
    words = text.strip("()").replace(" ", "").split(",")
    if len(words) != len(Shape._fields) or not all(w.isdecimal() and int(w) > 0 for w in words):
        message = f"expected four integers of at least 1, N,L,E,H, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    made = Shape(*map(int, words))
    if made.width % made.heads:
        message = f"expected a width E that the heads H divide, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return made


class Problem(NamedTuple):
    """A layer's parameters, its input and the gradient of its output, in one dtype.

    Attributes
    ----------
    shape : Shape
    dtype : str
    threads : int
    x, d_out : array (N, L, E)
        As our layer takes them; bfloat16 speaks DLPack.
    parameters : dict of str to array
        The state dict.
    """

    shape: Shape
    dtype: str
    threads: int
    x: Any
    d_out: Any
    parameters: dict[str, Any]

    @classmethod
    def of(cls, shape: Shape, dtype: str, threads: int) -> Problem:
        """Draw it.

        Examples
        --------
        >>> Problem.of(Shape(2, 3, 4, 1), "float32", 1).parameters["in_proj_weight"].shape
        (12, 4)
        """
        rng, (n, length, e, _) = np.random.default_rng(0), shape
        sizes = [(3 * e, e), (3 * e,), (e, e), (e,)]
        drawn = [rng.standard_normal(size, np.float32) * np.float32(e**-0.5) for size in sizes]
        x, d_out = (rng.standard_normal((n, length, e), np.float32) for _ in range(2))
        parameters = {name: store(a, dtype) for name, a in zip(PARAMETERS, drawn, strict=True)}
        return cls(shape, dtype, threads, store(x, dtype), store(d_out, dtype), parameters)

    def numpy(self, dtype: str | None = None) -> list[NDArray[Any]]:
        """Return input, gradient and the four parameters in a dtype that NumPy has."""
        arrays = [self.x, self.d_out, *self.parameters.values()]
        return [widen(a).astype(dtype or self.dtype) for a in arrays]
