"""Seeds: integers, NumPy's sources of them, or the system's."""

from __future__ import annotations

import os
from typing import TypeAlias

import numpy as np

from multihead.checks import integer

WORD = 2**64
Seed: TypeAlias = "int | np.random.Generator | np.random.SeedSequence | None"


def seed_from(seed: Seed) -> int:
    """Return a seed from 0 to 2**64 - 1, or raise.

    Parameters
    ----------
    seed : int, numpy.random.Generator, numpy.random.SeedSequence or None
        A Generator gives its next number, a SeedSequence the first of its state, the system one
        for None.
    """
    if seed is None:
        return int.from_bytes(os.urandom(8), "little")
    if isinstance(seed, int):
        return integer("seed", seed, 0, WORD)
    if isinstance(seed, np.random.Generator):  # importing numpy.random takes 30 ms
        return int(seed.integers(WORD, dtype=np.uint64))
    if isinstance(seed, np.random.SeedSequence):
        return int(seed.generate_state(1, np.uint64)[0])
    return integer("seed", seed, 0, WORD)
