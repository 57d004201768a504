"""Rotary positions as tensors: the tables that the engine reads, and in PyTorch's operations."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from multihead.rope import Rope
from multihead.rope_scaling import regime, turns


class TracedTurns(NamedTuple):
    """What makes angles of any length in a graph: a frequency for each pair, and a factor.

    Attributes
    ----------
    frequencies : Tensor (pairs,)
        float32.
    factor : float
    """

    frequencies: torch.Tensor
    factor: float


def traced_turns(rope: Rope, head_dim: int) -> TracedTurns | None:
    """Return what a graph needs, if the angles are the same for texts of any length."""
    far = 2**40
    if rope.positions is not None or regime(far, rope.scaling) != regime(1, rope.scaling):
        return None
    frequencies, factor = turns(rope.base, 2 * rope.pairs(head_dim), 1, rope.scaling)
    return TracedTurns(torch.from_numpy(frequencies.copy()), factor)


def angle_tensors(
    rope: Rope, traced: TracedTurns | None, head_dim: int, length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, (pairs, positions), for a text of so many positions."""
    if traced is None or not torch.compiler.is_compiling():
        return _tables(rope, head_dim, length, dtype == torch.float64)
    positions = torch.arange(length, dtype=torch.float32, device="cpu")
    angles = torch.outer(traced.frequencies, positions).double()
    cosine, sine = angles.cos() * traced.factor, angles.sin() * traced.factor
    made: tuple[torch.Tensor, torch.Tensor] = cosine.to(dtype), sine.to(dtype)
    return made


def _tables(
    rope: Rope, head_dim: int, length: int, wide: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    cosine, sine = rope.angles(head_dim, int(length), "float64" if wide else "float32")
    return torch.from_numpy(cosine), torch.from_numpy(sine)


# What `torch.compiler.disable` would set, which imports the compiler: seconds, for each program.
vars(_tables).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=None)


def angles_at(
    rope: Rope, head_dim: int, positions: Any, length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, (pairs, tokens), of some positions in a text of so many."""
    if rope.positions is not None:
        at = torch.from_numpy(positions)
        c, s = _tables(rope, head_dim, length, dtype == torch.float64)
        return c[:, at], s[:, at]
    frequencies, factor = turns(rope.base, 2 * rope.pairs(head_dim), length, rope.scaling)
    angles = np.outer(frequencies, positions.astype(np.float32)).astype(np.float64)
    cosine, sine = (torch.from_numpy(f(angles) * factor).to(dtype) for f in (np.cos, np.sin))
    return cosine, sine


def turned(
    x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """Turn pairs of features of x (N, H, L, D) by the angles of positions 0 to L - 1."""
    pairs, length = cosine.shape[0], x.shape[2]
    c, s = (t[:, :length].mT.to(x.dtype) for t in (cosine, sine))
    part, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if interleaved:
        a, b = part.unflatten(-1, (pairs, 2)).unbind(-1)
        both = torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2)
    else:
        a, b = part.chunk(2, -1)
        both = torch.cat([a * c - b * s, b * c + a * s], -1)
    return torch.cat([both, rest], -1)
