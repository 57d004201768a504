"""Ctrl-C ends a long call within 0.2 s: KeyboardInterrupt, and the next call is right."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import multihead as mh
from multihead import functional
from scripts import printed

WITHIN = 0.2  # s
LENGTH, HEADS, DIM = 16384, 4, 64

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself"),
]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape, np.float32)


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """Python's own, which a process that was started in the background may lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=(1, 2), ids=("one thread", "two threads"))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = mh.get_num_threads()
    mh.set_num_threads(request.param)
    yield request.param
    mh.set_num_threads(before)


def layer() -> mh.MultiheadAttention:
    return mh.MultiheadAttention(HEADS * DIM, HEADS, batch_first=True, seed=1)


# Each makes a call of some seconds.


def forward() -> Callable[[], Any]:
    x = normal(1, 4 * HEADS, LENGTH, DIM)
    return lambda: functional.scaled_dot_product_attention(x, x, x)


def backward() -> Callable[[], Any]:
    x = normal(1, 1, LENGTH, DIM)  # one task of one thread
    out, cache = functional.scaled_dot_product_attention(x, x, x, return_cache=True)
    many = [cache] * 4
    return lambda: [functional.scaled_dot_product_attention_backward(out, c) for c in many]


def mask_gradient() -> Callable[[], Any]:
    x, mask = normal(16, HEADS, 2048, 16), normal(1, 2048, 1)
    out, cache = functional.scaled_dot_product_attention(x, x, x, mask, return_cache=True)
    return lambda: functional.scaled_dot_product_attention_backward(out, cache, need_mask_grad=True)


def layer_forward() -> Callable[[], Any]:
    made, x = layer(), normal(8, LENGTH, HEADS * DIM)
    return lambda: made(x, x, x, need_weights=False)


def layer_weights() -> Callable[[], Any]:
    made, x = layer(), normal(24, 2048, HEADS * DIM)
    return lambda: made(x, x, x, average_attn_weights=True)


def torch_backward() -> Callable[[], Any]:
    import torch

    import multihead.torch as mht

    x = torch.from_numpy(normal(1, HEADS, LENGTH // 2, DIM)).requires_grad_()
    out = mht.scaled_dot_product_attention(x, x, x).sum()
    return lambda: [out.backward(retain_graph=True) for _ in range(4)]


CALLS = [forward, backward, mask_gradient, layer_forward, layer_weights, torch_backward]


def after(seconds: float, number: int, sent: list[float]) -> threading.Thread:
    """Send this process a signal, and note when."""

    def send() -> None:
        time.sleep(seconds)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_ctrl_c_ends_a_call(make: Callable[[], Callable[[], Any]], threads: int) -> None:
    call, x = make(), normal(2, 3, 70, 8)
    expected = functional.scaled_dot_product_attention(x, x, x)
    sent: list[float] = []
    sender = after(0.1, signal.SIGINT, sent)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert time.perf_counter() - sent[0] < WITHIN
    sender.join()
    assert np.array_equal(functional.scaled_dot_product_attention(x, x, x), expected)


def test_a_handler_that_raises_nothing_ends_no_call() -> None:
    heard, sent = [], []
    x = normal(1, HEADS, 4096, DIM)
    expected = functional.scaled_dot_product_attention(x, x, x)
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(time.perf_counter()))
    try:
        sender = after(0.01, signal.SIGUSR1, sent)
        while not heard:
            assert np.array_equal(functional.scaled_dot_product_attention(x, x, x), expected)
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard[0] - sent[0] < WITHIN


@contextlib.contextmanager
def alarms(handler: Callable[..., object]) -> Iterator[None]:
    """Let a handler run every 5 ms."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_handler_may_call_the_engine(threads: int, dtype: str) -> None:
    made = mh.MultiheadAttention(HEADS * DIM, HEADS, batch_first=True, seed=1, dtype=dtype).eval()
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    x = normal(1, 4096, HEADS * DIM).astype(kind)
    few = x[:, :70]
    expected = made(few, few, few, need_weights=False)[0]
    whole = made(x, x, x, need_weights=False)[0]
    right: list[bool] = []

    def handler(*_: object) -> None:
        right.append(np.array_equal(made(few, few, few, need_weights=False)[0], expected))

    with alarms(handler):
        while len(right) < 8:
            assert np.array_equal(made(x, x, x, need_weights=False)[0], whole)
    assert all(right)


def test_ctrl_c_ends_a_call_after_a_handler_has_called_the_engine() -> None:
    q = normal(1, HEADS, 70, DIM)
    call, sent = forward(), list[float]()
    with alarms(lambda *_: functional.scaled_dot_product_attention(q, q, q)):
        sender = after(0.1, signal.SIGINT, sent)
        with pytest.raises(KeyboardInterrupt):
            call()
        ended = time.perf_counter()
    sender.join()
    assert ended - sent[0] < WITHIN


@pytest.mark.parametrize("use", ["backward", "zero_grad", "forward"])
def test_a_handler_that_needs_what_its_thread_s_call_has_is_told(use: str) -> None:
    made = mh.MultiheadAttention(HEADS * DIM, HEADS, dropout=0.1, batch_first=True, seed=1)
    x, few = normal(1, 4096, HEADS * DIM), normal(1, 20, HEADS * DIM)
    made(few, few, few)
    small = made.cache
    made(x, x, x, need_weights=False)
    large = made.cache
    uses: dict[str, Callable[[], object]] = {
        "backward": lambda: made.backward(few, cache=small),
        "zero_grad": made.zero_grad,
        "forward": lambda: made(few, few, few),
    }
    told: list[str] = []

    def handler(*_: object) -> None:
        try:
            uses[use]()
        except RuntimeError as error:
            told.append(str(error))

    with alarms(handler):
        while not told:
            made.backward(x, cache=large)
    assert "a call of this thread is using it" in told[0]
    uses[use]()


def test_a_child_that_a_handler_forked_ends_its_call() -> None:
    code = """
import os, signal, time
import numpy as np
import multihead as mh
from multihead import functional
mh.set_num_threads(2)
x = np.ones((1, 16, 4096, 64), np.float32)
children = []
def handler(*_):
    if not children:
        children.append(os.fork())
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    functional.scaled_dot_product_attention(x, x, x)
except RuntimeError as error:
    if children != [0]:
        raise
    signal.alarm(30)
    alone = functional.scaled_dot_product_attention(x[:, :, :50], x, x)
    os._exit(3 if "forked" in str(error) and np.allclose(alone, 1) else 4)
assert children and children[0] > 0, children
print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""
    assert printed(code) == "3\n"


def test_any_exception_of_a_handler_ends_a_call() -> None:
    class TooLongError(Exception):
        pass

    def handler(*_: object) -> None:
        raise TooLongError

    call = layer_forward()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        began = time.perf_counter()
        with pytest.raises(TooLongError):
            call()
        assert time.perf_counter() - began < 0.1 + WITHIN
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_cache_of_keys_keeps_its_lengths() -> None:
    made = mh.MultiheadAttention(HEADS * DIM, HEADS, batch_first=True, seed=1).eval()
    x = normal(2, LENGTH // 2, HEADS * DIM)
    cache = made.new_kv_cache(2, LENGTH)
    sent: list[float] = []
    sender = after(0.1, signal.SIGINT, sent)
    with pytest.raises(KeyboardInterrupt):
        made(x, x, x, need_weights=False, is_causal=True, kv_cache=cache)
    sender.join()
    assert list(cache.lengths) == [0, 0]
    few = x[:, :50]
    again, _ = made(few, few, few, need_weights=False, is_causal=True, kv_cache=cache)
    alone, _ = made(few, few, few, need_weights=False, is_causal=True)
    np.testing.assert_allclose(again, alone, rtol=1e-5, atol=1e-6)


def test_other_threads_calls_go_on() -> None:
    x = normal(1, HEADS, 4096, DIM)
    expected = functional.scaled_dot_product_attention(x, x, x)
    right: list[bool] = []

    def compute() -> None:
        for _ in range(4):
            right.append(np.array_equal(functional.scaled_dot_product_attention(x, x, x), expected))

    other = threading.Thread(target=compute)
    sent: list[float] = []
    call = forward()
    other.start()
    sender = after(0.1, signal.SIGINT, sent)
    with pytest.raises(KeyboardInterrupt):
        call()
    sender.join()
    other.join()
    assert right == [True] * 4
