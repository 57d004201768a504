"""Keys and values are read where they lie, if they lie in rows: their layout changes no bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import kernel_sets
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)


def apart(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((*x.shape[:3], 3 * x.shape[3]), x.dtype)
    wide[..., : x.shape[3]] = x
    return wide[..., : x.shape[3]]


def gaps(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((*x.shape[:3], x.shape[3] + 1), x.dtype)
    wide[..., 1:] = x
    return wide[..., 1:]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "heads inside": lambda x: x.swapaxes(1, 2).copy().swapaxes(1, 2),
    "tokens inside": lambda x: x.swapaxes(2, 3).copy().swapaxes(2, 3),
    "gaps": gaps,
    "apart": apart,
    "backwards": lambda x: x[:, :, ::-1].copy()[:, :, ::-1],
    "features backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("queries", "head_dim"), [(7, 33), (70, 1), (130, 20), (400, 16)])
def test_the_layout_changes_no_bits(
    queries: int, head_dim: int, dtype: str, layout: str, rng: np.random.Generator
) -> None:
    q = rng.standard_normal((2, 4, queries, head_dim)).astype(dtype)
    k, v = (rng.standard_normal((2, 2, 150, n)).astype(dtype) for n in (head_dim, 21))
    mask = rng.random((2, 1, queries, 150)) < 0.4
    mask[..., 40] = True
    k[:, :, 40] = v[:, :, 40] = np.nan  # hidden from all
    d_out = rng.standard_normal((2, 4, queries, 21)).astype(dtype)

    def step(k: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
        out, cache = scaled_dot_product_attention(
            q, k, v, attn_mask=~mask, enable_gqa=True, dropout_p=0.1, seed=3, return_cache=True
        )
        return [out, *scaled_dot_product_attention_backward(d_out, cache)[:3]]

    expected = step(k, v)
    assert np.isfinite(expected[0]).all()
    assert np.isfinite(expected[1]).all()
    for one, other in ((LAYOUTS[layout](k), v), (k, LAYOUTS[layout](v))):
        for found, known in zip(step(one, other), expected, strict=True):
            np.testing.assert_array_equal(found, known)


@pytest.mark.usefixtures("isa")
def test_keys_that_all_heads_share_may_be_one_array(rng: np.random.Generator) -> None:
    q, k = (rng.standard_normal((1, n, 90, 16), dtype=np.float32) for n in (4, 1))
    shared = np.broadcast_to(k, q.shape)
    one = np.broadcast_to(k[:, :, :1], q.shape)  # the same row, again and again
    for given in (shared, one):
        found = scaled_dot_product_attention(q, given, given)
        np.testing.assert_array_equal(
            found, scaled_dot_product_attention(q, given.copy(), given.copy())
        )


END = """
import ctypes, mmap
import numpy as np
from multihead import _native
from multihead.functional import scaled_dot_product_attention as attend
from multihead.functional import scaled_dot_product_attention_backward as differentiate

libc = ctypes.CDLL(None, use_errno=True)


def at_the_end(x):
    \"\"\"A copy whose last byte is the last before memory that may not be read.\"\"\"
    pages = -(-x.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    bytes_ = np.frombuffer(memory, np.uint8)
    where = ctypes.c_void_p(bytes_.ctypes.data + pages * mmap.PAGESIZE)
    assert libc.mprotect(where, mmap.PAGESIZE, 0) == 0
    first = pages * mmap.PAGESIZE - x.nbytes
    copy = bytes_[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


rng = np.random.default_rng(0)
print(_native.isa())
for queries, keys, dim in ((70, 64, 20), (5, 81, 7), (33, 130, 64), (200, 1, 1)):
    q = rng.standard_normal((1, 2, queries, dim), dtype=np.float32)
    k, v = (rng.standard_normal((1, 2, keys, dim), dtype=np.float32) for _ in "kv")
    for x, y in ((k, v), (at_the_end(k), at_the_end(v))):
        out, cache = attend(q, x, y, return_cache=True)
        differentiate(q, cache)
        print(out.tobytes() == attend(q, k, v).tobytes())
"""


@pytest.mark.parametrize("isa", kernel_sets.OURS)
@pytest.mark.skipif(sys.platform == "win32", reason="memory is protected by mprotect")
def test_nothing_is_read_beyond_the_last_key(isa: str) -> None:
    command = [sys.executable, "-c", END]
    chosen = os.environ | {"MULTIHEAD_ISA": isa}
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=chosen
    )
    assert run.stdout == isa + "\n" + 8 * "True\n", (run.returncode, run.stderr)
