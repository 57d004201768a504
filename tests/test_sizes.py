"""Sizes beyond 2^31, 2^32 and 2^63: they work, or an error says what is too large, at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from ctypes import c_size_t
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import large_sizes
import multihead as mh
from bnns_problem import Options, Problem
from multihead import functional
from multihead.bnns import BNNSApplyMultiheadAttention, BNNSApplyMultiheadAttentionBackward

HERE = Path(__file__).parent
# what messages name: an argument or a result, and a shape or a number
NAMES = ("out:", "weights:", "keys of the cache:", "parameters:", "padded values:", "out of memory")
CHECKED = ("sequences of query:", "tokens of key:", "query, key and value:")
TORCH = ("[enforce fail", "Storage size calculation overflowed")  # its own, before ours is called


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("group", large_sizes.GROUPS)
def test_what_no_memory_holds_is_an_error(group: str) -> None:
    done = subprocess.run(
        [sys.executable, "large_sizes.py", group],
        cwd=HERE,
        env=os.environ | {"MULTIHEAD_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    answers = [line.split("|") for line in done.stdout.splitlines()]
    assert len(answers) >= 4 * 10
    for what, seconds, said in answers:
        kind, _, message = said.partition(": ")
        if group == "torch" and kind == "RuntimeError":
            assert message.startswith(TORCH), (what, said)
            continue
        assert kind in ("MemoryError", "ValueError"), (what, said)
        assert message.startswith(NAMES if kind == "MemoryError" else CHECKED), (what, said)
        assert any(mark in message for mark in ("(", "got ")), (what, said)
        assert float(seconds) < 0.5, (what, seconds)


@pytest.mark.parametrize("dtype", ["bool", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2**40, 3), (2**20, 2**20, 3), (2**40, 2, 3)])
def test_what_does_not_fit_is_refused_before_it_is_copied(
    shape: tuple[int, ...], dtype: str
) -> None:
    # of one element in memory: a copy, to cast or to pad it, asks for terabytes
    wide = np.broadcast_to(np.ones((), dtype), shape)
    q, x = np.zeros((2, 3, 5, 4), np.float32), np.zeros((5, 2, 6), np.float32)
    layer = mh.MultiheadAttention(6, 3, seed=0)
    for name in ("attn_mask", "sinks", "alibi_slopes"):
        if dtype != "bool" or name == "attn_mask":
            with pytest.raises(ValueError, match=rf"^{name}: .* got \({shape[0]}, "):
                functional.scaled_dot_product_attention(q, q, q, **{name: wide})
    for name in ("attn_mask", "key_padding_mask"):
        with pytest.raises(ValueError, match=rf"^{name}: .* got \({shape[0]}, "):
            layer(x, x, x, **{name: wide})


@pytest.mark.timeout(240)
def test_more_than_2_31_scores(rng: np.random.Generator) -> None:
    length = 46_400  # squared: 2^31 and 5 million
    shape = (1, 1, length, 1)
    q, k, v = (rng.standard_normal(shape, dtype=np.float32) for _ in "qkv")
    out = functional.scaled_dot_product_attention(q, k, v)
    rows = [0, 1, length // 2, length - 2, length - 1]
    some, keys, values = (x.reshape(length).astype(np.float64) for x in (q, k, v))
    some = some[rows]
    weights = np.exp(np.outer(some, keys))
    expected = weights @ values / weights.sum(1)
    np.testing.assert_allclose(out[0, 0, rows, 0], expected, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def far_memory(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """16 GiB of which a file holds the pages that are written."""
    path = tmp_path_factory.mktemp("far") / "memory"
    return np.memmap(path, np.float32, "w+", shape=(2**32 + 2**17,))


class Far:
    """Makes arrays like others, whose neighbours along an axis lie over 2^31 elements apart."""

    def __init__(self, memory: np.ndarray, axis: int) -> None:
        self.memory, self.axis, self.used = memory, axis, 0

    def like(self, array: np.ndarray) -> np.ndarray:
        if array.shape[self.axis] != 2:
            return array
        part = self.memory[self.used :].view(array.dtype)
        strides = list(np.empty_like(array).strides)
        strides[self.axis] = (2**31 + 64) * array.itemsize
        self.used += -(-array.nbytes // 64) * 16
        view = np.lib.stride_tricks.as_strided(part, array.shape, strides)
        view[...] = array
        return view


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs files with holes")
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("queries", [2, 70])
def test_elements_may_lie_2_31_apart(
    axis: int, queries: int, far_memory: np.ndarray, rng: np.random.Generator
) -> None:
    shape = [2, 2, queries, 4]
    shape[axis] = 2
    near = [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]
    near.append(rng.standard_normal((2, 2, shape[2], shape[2]), dtype=np.float32))
    far = Far(far_memory, axis)

    def call(q: Any, k: Any, v: Any, d_out: Any, mask: Any) -> list[bytes]:
        out, cache = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, return_cache=True
        )
        again = functional.scaled_dot_product_attention(q, k, v)
        grads = functional.scaled_dot_product_attention_backward(d_out, cache, need_mask_grad=True)
        return [x.tobytes() for x in (out, again, *grads)]

    assert call(*map(far.like, near)) == call(*near)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs files with holes")
@pytest.mark.parametrize("axis", range(3))
def test_tokens_of_a_layer_may_lie_2_31_apart(
    axis: int, far_memory: np.ndarray, rng: np.random.Generator
) -> None:
    shape = [3, 70, 8]
    shape[axis] = 2
    layer = mh.MultiheadAttention(shape[2], 2, batch_first=True, seed=0)
    near = [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]
    far = Far(far_memory, axis)

    def call(arrays: list[np.ndarray]) -> list[bytes]:
        *inputs, given = arrays
        layer.zero_grad()
        out, weights = layer(*inputs)
        grads = layer.backward(out, weights, out=(given, given, given))
        return [x.tobytes() for x in (out, weights, grads[0], *layer.grads.values())]

    assert call([far.like(x) for x in near]) == call(near)


def memory_used() -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmPeak:"))


@pytest.mark.timeout(60)
def test_sizes_of_a_batch_are_told_at_once(rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(T=3, S=70, attention_biases=True, zero_row=True))
    problem.create()
    linux = sys.platform.startswith("linux")
    before, start = memory_used() if linux else 0, time.process_time()
    told = {}
    for batch in (1, 1000, 10**6, 2**31 - 1):
        sizes = c_size_t(), c_size_t(), c_size_t()
        of_forward = {"backprop_cache_size": sizes[0], "workspace_size": sizes[1]}
        asked = problem.forward_arguments(batch_size=batch, **of_forward)
        BNNSApplyMultiheadAttention(*asked)
        asked = problem.backward_arguments(batch_size=batch, workspace_size=sizes[2])
        BNNSApplyMultiheadAttentionBackward(*asked)
        told[batch] = [size.value for size in sizes]
    assert time.process_time() - start < 0.5
    assert not linux or memory_used() - before < 1 << 14  # KiB
    for i, least in enumerate((70 * 4, 0, 70 * 4)):  # a workspace beside a cache holds weights
        one, some, many, most = (sizes[i] for sizes in told.values())
        each = (most - many) / (2**31 - 1 - 10**6)
        assert each >= least  # the keys of a sequence
        for batch, size in ((1, one), (1000, some)):
            assert abs(many - size - each * (10**6 - batch)) < 1 << 14  # weights, ends of arrays
