"""No L x S matrix is ever held: the peak memory of a training step, in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PEAK = """
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def start():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is what is held now
    return status("VmRSS")
"""

STEP = """
import numpy as np
import multihead as mh

L, E = {length}, {embed}
layer = mh.MultiheadAttention(E, {heads}, dropout=0.1, batch_first=True, seed=0)
small = np.ones((1, 64, E), np.float32)
layer(small, small, small, need_weights=False)
layer.backward(small)  # threads and gradients exist
rng = np.random.default_rng(0)
x = rng.standard_normal((1, L, E), dtype=np.float32)
y = rng.standard_normal((1, L, E), dtype=np.float32) if {cross} else x
d_out = rng.standard_normal((1, L, E), dtype=np.float32)
out = tuple(np.ones((1, L, E), np.float32) for _ in range(3))

before = start()
result, _ = layer(x, y, y, need_weights=False, is_causal={causal})
layer.backward(d_out, out=out)
print(status("VmHWM") - before)
assert np.isfinite(result).all() and all(np.isfinite(z).all() and z.std() > 0 for z in out)
"""

WEIGHTS = """
import numpy as np
import multihead as mh

L, E = {length}, 64
mh.set_num_threads(2)
layer = mh.MultiheadAttention(E, {heads}, batch_first=True, seed=0)
x = np.random.default_rng(0).standard_normal((1, L, E), dtype=np.float32)
mask = np.zeros((L, L), np.float32)
small = x[:, :64]
layer(small, small, small)
layer.backward(small)
d_weights = np.ones((1, L, L), np.float32)
before = start()
out, weights = layer(x, x, x, attn_mask=mask)
*_, d_mask, _ = layer.backward(x, d_weights, need_mask_grad=True)
print(status("VmHWM") - before)
assert weights.shape == d_weights.shape and d_mask.shape == mask.shape
"""

FUNCTION = """
import numpy as np
from multihead.functional import scaled_dot_product_attention as attend

rng = np.random.default_rng(0)
k = rng.standard_normal((1, 4, 65536, 64), dtype=np.float32)
q = k[:, :, :128].copy()
attend(q, k[:, :, :512], k[:, :, :512])
before = start()
attend(q, k, k)
print(status("VmHWM") - before)
"""


def peak(code: str) -> int:
    """Run code that prints how far the peak rose above what was held."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + code],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.timeout(240)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_a_training_step_is_linear_in_the_length(cross: bool) -> None:
    length, embed = 8192, 512
    code = STEP.format(length=length, embed=embed, heads=8, cross=cross, causal=not cross)
    assert length * embed * 4 < peak(code) < 12 * length * embed * 4


@pytest.mark.timeout(240)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_averaged_weights_and_a_mask_gradient_cost_one_matrix_each() -> None:
    length, heads = 2048, 16
    matrix, activations = length * length * 4, 12 * length * 64 * 4
    found = peak(WEIGHTS.format(length=length, heads=heads))
    assert 2 * matrix < found < 3 * matrix + activations


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_keys_that_lie_in_rows_are_not_copied() -> None:
    assert peak(FUNCTION) < 2**22  # they take 2^26 bytes
