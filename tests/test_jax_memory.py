"""Memory of training in JAX is linear in the length."""

from __future__ import annotations

import pytest

from scripts import printed

pytest.importorskip("jax")
resource = pytest.importorskip("resource")

TRAIN = """
import resource, sys
import jax
import numpy as np
from multihead.jax import dot_product_attention

rng = np.random.default_rng(91)
loss = lambda q, k, v: (dot_product_attention(q, k, v, is_causal=True) ** 2).sum()
step = jax.jit(jax.grad(loss, (0, 1, 2)))

def peak(length):
    arrays = rng.standard_normal((3, 1, length, 2, 16), np.float32)
    jax.block_until_ready(step(*arrays))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(peak(512), peak(8192))
"""
SCORES = 2 * 8192 * 8192 * 4 // 1024  # of all heads, in KiB


def test_a_step_of_training_holds_no_scores() -> None:
    short, long = map(int, printed(TRAIN).split())
    unit = 1 if long < 100 * SCORES else 1024  # macOS counts bytes
    assert (long - short) // unit < SCORES // 8
