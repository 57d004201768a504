"""Comparisons of sizes, which need not be known while PyTorch compiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal; where only the run can tell, it is checked there."""
    if not torch.compiler.is_compiling():
        return bool(a == b)
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    if not guard_or_true(a == b):
        return False
    torch._check(a == b)
    return True


def is_one(a: Any) -> bool:
    """Whether a size is 1; one that only the run can tell is not."""
    if not torch.compiler.is_compiling():
        return bool(a == 1)
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(a == 1))


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal."""
    if not torch.compiler.is_compiling():
        return tuple(a) == tuple(b)
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def broadcasts(shape: Sequence[Any], to: Sequence[Any]) -> bool:
    """Whether a shape broadcasts to another that has as many axes or more."""
    if len(shape) > len(to):
        return False
    last = to[len(to) - len(shape) :]
    return all(is_one(a) or same(a, b) for a, b in zip(shape, last, strict=True))


def broadcast(shapes: Sequence[Sequence[Any]]) -> tuple[Any, ...] | None:
    """Return the shape that shapes broadcast to; None if there is none."""
    rank = max(map(len, shapes))
    whole: list[Any] = [1] * rank
    for shape in shapes:
        for i, a in enumerate(shape, rank - len(shape)):
            if is_one(a):
                continue
            if is_one(whole[i]):
                whole[i] = a
            elif not same(whole[i], a):
                return None
    return tuple(whole)
