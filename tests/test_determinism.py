"""The same inputs give the same bits: for any number of threads, and for any ISA with FMA."""

from __future__ import annotations

import functools
import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import pytest

import multihead as mh
from digests import digests
from kernel_sets import EXACT_SETS, OURS
from multihead import _native
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

HERE = pathlib.Path(__file__).parent


def run(
    *arguments: str, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@functools.cache
def digests_of(isa: str, threads: int = 2) -> dict[str, str]:
    before = _native.use_isa(isa), mh.get_num_threads()
    mh.set_num_threads(threads)
    try:
        return digests()
    finally:
        _native.use_isa(before[0])
        mh.set_num_threads(before[1])


@pytest.mark.timeout(120)
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    assert mh.get_num_threads() == threads
    assert digests() == digests_of(_native.isa(), 1)


@pytest.mark.timeout(120)
def test_the_same_call_twice_gives_the_same_bits() -> None:
    assert digests() == digests()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", EXACT_SETS)
def test_sets_with_fma_give_the_same_bits(name: str) -> None:
    assert digests_of(name) == digests_of(EXACT_SETS[0])


@pytest.mark.timeout(300)
def test_any_number_of_threads_gives_the_same_bits_on_every_set(isa: str) -> None:
    assert digests_of(isa, 3) == digests_of(isa)


@pytest.mark.parametrize("scale", [0.0, -0.5, 0.5])
@pytest.mark.parametrize("queries", [70, 1100])
def test_zeros_have_the_same_sign_for_any_number_of_threads(scale: float, queries: int) -> None:
    # keys of one head are split into groups for some numbers of threads, and causality hides groups
    rng = np.random.default_rng(7)
    q = rng.standard_normal((1, 1, queries, 3)).astype(np.float32)
    k, v = rng.standard_normal((2, 1, 1, 1100, 3)).astype(np.float32)
    q[..., 0] = k[..., 0] = 0
    before, found = mh.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 7):
            mh.set_num_threads(threads)
            out, cache = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, return_cache=True
            )
            d_q, *_ = scaled_dot_product_attention_backward(out, cache)
            found.add(d_q.tobytes())
    finally:
        mh.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("keys", [2300, 4200])
def test_many_groups_of_keys_are_added_in_one_order(keys: int) -> None:
    # 36 and 66 tiles: groups are longer than the shortest, and their number must not follow threads
    rng = np.random.default_rng(8)
    q, d_out = rng.standard_normal((2, 1, 1, 70, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, 1, 1, keys, 8)).astype(np.float32)
    before, found = mh.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 7):
            mh.set_num_threads(threads)
            out, cache = scaled_dot_product_attention(q, k, v, return_cache=True)
            grads = scaled_dot_product_attention_backward(d_out, cache)
            found.add((out.tobytes(), *(x.tobytes() for x in grads if x is not None)))
    finally:
        mh.set_num_threads(before)
    assert len(found) == 1


ROUNDED = """
import ctypes, hashlib, sys
import numpy as np
import multihead as mh
libm = ctypes.CDLL(None)
libm.fesetround.argtypes = [ctypes.c_int]
mh.set_num_threads(int(sys.argv[1]))
rng = np.random.default_rng(0)
x = rng.standard_normal((3, 200, 48)).astype(np.float32)
layer = mh.MultiheadAttention(48, 3, batch_first=True, seed=0)
layer.grads
libm.fesetround(int(sys.argv[2], 16))
out, _ = layer(x, x, x)
grads = layer.backward(out)
libm.fesetround(0)
print(hashlib.sha256(b"".join(a.tobytes() for a in (out, *grads))).hexdigest())
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86 rounding modes")
def test_workers_round_as_the_caller_does() -> None:
    nearest, upward, toward_zero = "0x000", "0x800", "0xc00"
    found = {
        mode: {run("-c", ROUNDED, threads, mode).stdout for threads in ("1", "3")}
        for mode in (nearest, upward, toward_zero)
    }
    assert all(len(hashes) == 1 for hashes in found.values())
    assert len(set.union(*found.values())) == 3


@pytest.mark.timeout(120)
@pytest.mark.parametrize("isa", OURS)
def test_the_environment_chooses_the_isa(isa: str) -> None:
    code = "from multihead import _native; print(_native.isa())"
    assert run("-c", code, MULTIHEAD_ISA=isa).stdout.strip() == isa


@pytest.mark.timeout(120)
@pytest.mark.parametrize("isa", ["sse9", "AVX 2", *sorted({"avx512", "neon"} - {*OURS})])
def test_an_unavailable_isa_is_an_error_that_names_it(isa: str) -> None:
    code = "import multihead as mh, numpy as np; x = np.ones((2, 1, 4)); "
    code += "mh.MultiheadAttention(4, 2, dtype=float)(x, x, x)"
    done = run("-c", code, MULTIHEAD_ISA=isa)
    assert done.returncode == 1
    assert "MULTIHEAD_ISA" in done.stderr
    assert isa in done.stderr
    assert "baseline" in done.stderr
