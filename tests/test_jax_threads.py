"""XLA's threads do the work of a call: the engine starts none of its own for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("jax")

PROGRAM = """
import os

import jax
import numpy as np

import multihead as mh
from multihead.functional import scaled_dot_product_attention
from multihead.jax import dot_product_attention

mh.set_num_threads(3)
x = np.random.default_rng(5).standard_normal((3, 257, 6, 32), dtype=np.float32)
threads = lambda: len(os.listdir("/proc/self/task"))

def product(x):
    return jax.numpy.einsum("nlhd,nshd->nhls", x, x)

def attend(x):
    return dot_product_attention(x, x, x)

jax.block_until_ready(jax.jit(product)(x))
before = threads()
out = jax.block_until_ready(jax.jit(jax.value_and_grad(lambda x: attend(x).sum()))(x))
under_xla = threads()
heads = x.swapaxes(1, 2)
scaled_dot_product_attention(heads, heads, heads)
print(before, under_xla, threads())
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_call_of_xla_s_starts_no_threads() -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    before, under_xla, beside = map(int, done.stdout.split())
    assert under_xla == before
    assert beside == before + 2
