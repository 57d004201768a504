"""Processes made by others: forks at any time, and the workers of multiprocessing and PyTorch."""

from __future__ import annotations

import multiprocessing
import os
import platform

import pytest

from scripts import printed, run

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
]

COMPUTES = """
import os, signal, sys, threading, time
import numpy as np
import multihead as mh
from multihead import functional
mh.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((2, 200, 64)).astype(np.float32)
q = np.ascontiguousarray(x.reshape(2, 200, 4, 16).transpose(0, 2, 1, 3))
large = np.ones((1, 4, 700, 64), np.float32)  # whose memory is kept for the next call
def step():
    layer = mh.MultiheadAttention(64, 4, batch_first=True, dropout=0.1, seed=0)
    out, _ = layer(x, x, x)
    grads = layer.backward(out)
    attended = functional.scaled_dot_product_attention(q, q, q)
    functional.scaled_dot_product_attention(large, large, large)
    return b"".join(a.tobytes() for a in (out, *grads, *layer.grads.values(), attended))
def child_of(work):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for good
        os._exit(0 if work() else 1)
    return child
def ended_well(child):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status
expected = step()
"""


def test_children_forked_while_other_threads_are_inside_calls() -> None:
    code = """
decoder = mh.MultiheadAttention(64, 4, batch_first=True, seed=0).eval()
cache = decoder.new_kv_cache(batch=2, capacity=400)
def decode():
    while not done.is_set():
        cache.reset()
        decoder(x, x, x, need_weights=False, kv_cache=cache)
shared = mh.MultiheadAttention(64, 4, batch_first=True, seed=0)
done = threading.Event()
def work():
    while not done.is_set():
        assert step() == expected
        shared(x, x, x)
        shared.backward(x)
threads = [threading.Thread(target=task) for task in (work, work, decode)]
for thread in threads:
    thread.start()
def in_child():
    shared(x, x, x)  # whose lock another thread may have had
    shared.backward(x)
    cache.reset()  # which another thread may have been using
    decoder(x, x, x, need_weights=False, kv_cache=cache)
    mh.show_config("dicts")
    return mh.get_num_threads() == 3 and step() == expected
try:
    for _ in range(12):
        time.sleep(0.002)
        ended_well(child_of(in_child))
finally:
    done.set()
for thread in threads:
    thread.join()
print(step() == expected)
"""
    assert printed(COMPUTES + code) == "True\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's loader what it does")
def test_calls_that_want_for_cores_leave_the_loader_alone() -> None:
    """A child forked while another thread is inside it would find it half changed."""
    code = """
def work():
    for _ in range(40):
        step()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("torch" in sys.modules)
"""
    done = run(COMPUTES + code, LD_DEBUG="libs")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert "libmultihead.so" in done.stderr
    assert "libtorch" not in done.stderr


def test_children_of_children_and_of_threads() -> None:
    code = """
def deeper(levels):
    if step() != expected:
        return False
    if levels:
        ended_well(child_of(lambda: deeper(levels - 1)))
    return step() == expected
ended_well(child_of(lambda: deeper(3)))
found = []
def of_a_thread():
    ended_well(child_of(lambda: deeper(1)))
    found.append(step() == expected)
threads = [threading.Thread(target=of_a_thread) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(found, step() == expected)
"""
    assert printed(COMPUTES + code) == "[True, True, True, True] True\n"


def test_a_child_s_threads_are_its_own() -> None:
    code = """
def changed():
    mh.set_num_threads(5)
    return step() == expected and mh.get_num_threads() == 5
ended_well(child_of(changed))
def ends_as_python_does():  # with all that Python does at its end, and with what we do
    assert step() == expected
    sys.exit(0)
child = os.fork()
if child == 0:
    ends_as_python_does()
ended_well(child)
print(mh.get_num_threads())
"""
    assert printed(COMPUTES + code) == "3\n"


def work(seed: int) -> str:
    """What a worker of multiprocessing computes."""
    import numpy as np

    import multihead as mh
    from digests import digest

    layer = mh.MultiheadAttention(48, 4, batch_first=True, dropout=0.1, seed=seed)
    x = np.random.default_rng(seed).standard_normal((2, 120, 48)).astype(np.float32)
    out, _ = layer(x, x, x)
    return digest(out, *layer.backward(out), *layer.grads.values())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing(method: str) -> None:
    expected = [work(seed) for seed in range(6)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(work, range(6)).get(timeout=60) == expected


# PyTorch's workers are forked from a process in which both runtimes have threads.
LOADER = """
import sys
import numpy as np
import torch
import multihead as mh
from multihead.torch import MultiheadAttention, scaled_dot_product_attention
torch.set_num_threads(2)
mh.set_num_threads(2)
torch.manual_seed(0)
layer, own = MultiheadAttention(64, 4, batch_first=True), mh.MultiheadAttention(64, 4, seed=0)
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        x = torch.from_numpy(np.random.default_rng(i).standard_normal((200, 64))).float()
        given = x[None].clone().requires_grad_()
        layer.zero_grad()
        out, _ = layer(given, given, given, need_weights=False)
        out.sum().backward()
        heads = x.view(1, 200, 4, 16).transpose(1, 2)
        attended = scaled_dot_product_attention(heads, heads, heads)
        numpy, _ = own(x.numpy(), x.numpy(), x.numpy())
        gradient = layer.in_proj_weight.grad.flatten()[:64].clone()
        return torch.cat([y.detach().flatten() for y in (
            out, given.grad, attended, torch.from_numpy(numpy), gradient)])
data = Data()
expected = [data[i] for i in range(len(data))]
loader = torch.utils.data.DataLoader(
    data, batch_size=None, num_workers=2, multiprocessing_context=sys.argv[1], timeout=50)
for _ in range(2):
    assert all(map(torch.equal, loader, expected))
assert torch.equal(data[0], expected[0])
print("equal")
"""


def test_pytorch_s_workers() -> None:
    assert printed(LOADER, "fork") == "equal\n"


def test_children_of_a_process_that_uses_jax() -> None:
    """XLA's own threads, and ours that it called, are not in the child: NumPy's face needs none."""
    pytest.importorskip("jax")
    code = """
import jax
from multihead.jax import dot_product_attention, multi_head_attention
layer = mh.MultiheadAttention(64, 4, seed=0)
params = {name: jax.numpy.asarray(array) for name, array in layer.state_dict().items()}
def loss(x):
    heads = x.reshape(2, 200, 4, 16)
    whole = multi_head_attention(params, x, num_heads=4)
    return dot_product_attention(heads, heads, heads).sum() + (whole ** 2).sum()
gradient = jax.jit(jax.grad(loss))
before = np.asarray(gradient(x))
def in_child():
    return mh.get_num_threads() == 3 and step() == expected
ended_well(child_of(in_child))
done = threading.Event()
def work():
    while not done.is_set():
        assert np.array_equal(gradient(x), before)
thread = threading.Thread(target=work)
thread.start()
try:
    for _ in range(5):  # while XLA is inside calls of ours
        time.sleep(0.002)
        ended_well(child_of(in_child))
finally:
    done.set()
thread.join()
print(np.array_equal(gradient(x), before), step() == expected)
"""
    assert printed(COMPUTES + code) == "True True\n"
