"""No L x S matrix is ever held: the peak memory of a training step, in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEP = """
import resource
import numpy as np
import multihead as mh

L, E = {length}, {embed}
layer = mh.MultiheadAttention(E, {heads}, dropout=0.1, batch_first=True, seed=0)
layer.zero_grad()
small = np.ones((1, 64, E), np.float32)
layer(small, small, small, need_weights=False)
layer.backward(small)  # threads and gradients exist
rng = np.random.default_rng(0)
x = rng.standard_normal((1, L, E), dtype=np.float32)
y = rng.standard_normal((1, L, E), dtype=np.float32) if {cross} else x
d_out = rng.standard_normal((1, L, E), dtype=np.float32)
out = tuple(np.ones((1, L, E), np.float32) for _ in range(3))
del rng

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def current():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

before = current()
assert peak() - before < 64 << 20, "the inputs were made without a peak"
result, _ = layer(x, y, y, need_weights=False, is_causal={causal})
layer.backward(d_out, out=out)
assert np.isfinite(result).all() and all(np.isfinite(z).all() for z in out)
assert all(z.std() > 0 for z in out)
print(max(peak() - before, 0))
"""


@pytest.mark.timeout(240)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_a_training_step_is_linear_in_the_length(cross: bool) -> None:
    length, embed = 8192, 512
    code = STEP.format(length=length, embed=embed, heads=8, cross=cross, causal=not cross)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12 * length * embed * 4
