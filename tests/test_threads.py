"""Threads of the caller and of the engine: their number, concurrent calls, forks."""

from __future__ import annotations

import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import multihead as mh
from cases import Construction, layer_step, make_call, make_layer
from digests import digest
from multihead.bnns.library import library_path
from scripts import run


def test_the_number_of_threads_is_what_was_set(threads: int) -> None:
    assert mh.get_num_threads() == threads


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", None])
def test_a_number_of_threads_that_makes_no_sense_is_refused(number: object) -> None:
    before = mh.get_num_threads()
    with pytest.raises((ValueError, TypeError)):
        mh.set_num_threads(number)
    assert mh.get_num_threads() == before


@pytest.mark.timeout(120)
def test_the_environment_sets_the_number_of_threads() -> None:
    code = "import multihead as mh; print(mh.get_num_threads())"
    assert run(code, MULTIHEAD_NUM_THREADS="3").stdout.strip() == "3"


ALONE = """
import os, numpy as np, multihead as mh
def started(tokens, width):
    layer = mh.MultiheadAttention(width, 2, batch_first=True).eval()
    x = np.ones((1, tokens, width), np.float32)
    before = len(os.listdir("/proc/self/task"))
    layer(x, x, x)
    return len(os.listdir("/proc/self/task")) - before
print(started(4, 16), started(256, 128))
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_little_is_computed_alone() -> None:
    assert run(ALONE, MULTIHEAD_NUM_THREADS="3").stdout.split() == ["0", "2"]


NUMBER = "import multihead as mh; print(mh.get_num_threads())"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("words", ["abc", "0", "-1", "5000", "2x", "1.5", "99999999999999999999"])
def test_an_environment_that_makes_no_sense_is_refused(words: str) -> None:
    done = run("import multihead", MULTIHEAD_NUM_THREADS=words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: MULTIHEAD_NUM_THREADS: expected an integer from 1 to 1024, got '{words}'"
    )


@pytest.mark.timeout(120)
def test_such_an_environment_stops_no_c_program() -> None:
    code = f"""
import ctypes
library = ctypes.CDLL({str(library_path())!r})
library.multihead_last_error.restype = ctypes.c_char_p
library.multihead_set_num_threads(2)
print(library.multihead_get_num_threads())
print(library.multihead_last_error().decode())
"""
    done = run(code, MULTIHEAD_NUM_THREADS="abc")
    assert done.stdout == (
        "-1\nmultihead_get_num_threads: "
        "MULTIHEAD_NUM_THREADS: expected an integer from 1 to 1024, got 'abc'\n"
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("share", ["1", "1,4"])
def test_openmp_s_environment_bounds_the_default(share: str) -> None:
    usable = run(NUMBER, MULTIHEAD_NUM_THREADS="", OMP_NUM_THREADS="").stdout
    assert run(NUMBER, MULTIHEAD_NUM_THREADS="", OMP_NUM_THREADS=share).stdout == "1\n"
    assert run(NUMBER, MULTIHEAD_NUM_THREADS="", OMP_NUM_THREADS="900").stdout == usable
    assert run(NUMBER, MULTIHEAD_NUM_THREADS="", OMP_NUM_THREADS="none").stdout == usable
    assert run(NUMBER, MULTIHEAD_NUM_THREADS="3", OMP_NUM_THREADS=share).stdout == "3\n"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "imports",
    [
        "import threadpoolctl, multihead as mh",
        "import multihead as mh, threadpoolctl; mh.register_threadpoolctl()",
        "import threadpoolctl, multihead as mh; mh.register_threadpoolctl()",
    ],
)
def test_threadpoolctl_limits_the_engine(imports: str) -> None:
    code = f"""
{imports}
mh.set_num_threads(5)
with threadpoolctl.threadpool_limits(limits=2):
    print(mh.get_num_threads())
print(mh.get_num_threads())
with threadpoolctl.threadpool_limits(limits={{"multihead": 3}}):
    print(mh.get_num_threads())
with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
    print(mh.get_num_threads())
print([x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == "multihead"])
"""
    done = run(code)
    assert (done.stdout.split("\n"), done.stderr) == (["2", "5", "3", "5", "[5]", ""], "")


@pytest.mark.timeout(120)
def test_threadpoolctl_is_not_imported() -> None:
    code = "import sys, multihead; print('threadpoolctl' in sys.modules)"
    assert run(code).stdout == "False\n"


def one_step(seed: int) -> str:
    rng = np.random.default_rng(seed)
    how = Construction(48, 3, dropout=0.2, dtype="float32")
    layer = make_layer(how, rng)
    call = make_call(how, rng, 2, 90 + seed, 130, padding="bool", weights="average")
    step = layer_step(layer, call)
    return digest(step.out, step.weights, *(step.grads[name] for name in sorted(step.grads)))


@pytest.mark.timeout(120)
def test_concurrent_callers_get_their_own_results(threads: int) -> None:
    expected = [one_step(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(one_step, range(8))) == expected


@pytest.mark.timeout(120)
def test_one_layer_serves_many_threads_in_eval(threads: int) -> None:
    rng = np.random.default_rng(0)
    how = Construction(48, 3, dtype="float32")
    layer = make_layer(how, rng)
    layer.eval()
    calls = [make_call(how, rng, 2, 60 + i, 75) for i in range(8)]
    expected = [layer(call.query, call.key, call.value)[0] for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = pool.map(lambda call: layer(call.query, call.key, call.value)[0], calls)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.timeout(120)
def test_the_interpreter_runs_on_during_a_call() -> None:
    code = """
import threading, time
import numpy as np
import multihead as mh
layer = mh.MultiheadAttention(256, 4, batch_first=True, seed=0)
x = np.ones((2, 2048, 256), np.float32)
ticks, done = [], threading.Event()
def tick():
    while not done.is_set():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
thread = threading.Thread(target=tick)
thread.start()
start = time.perf_counter()
for _ in range(4):
    layer(x, x, x, need_weights=False)
end = time.perf_counter()
done.set()
thread.join()
print(sum(start < t < end for t in ticks) / (end - start))
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 20  # ticks a second; with the GIL held there is one a call


@pytest.mark.timeout(120)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_can_compute() -> None:
    code = """
import os, sys
import numpy as np
import multihead as mh
mh.set_num_threads(3)
layer = mh.MultiheadAttention(64, 4, batch_first=True, seed=0)
x = np.random.default_rng(0).standard_normal((2, 300, 64)).astype(np.float32)
def step():
    layer.zero_grad()
    out, _ = layer(x, x, x)
    return b"".join(a.tobytes() for a in (out, *layer.backward(out)))
expected = step()
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if step() == expected and step() == expected else 1)
    assert step() == expected
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
print("fine")
"""
    done = run(code)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.timeout(120)
def test_the_process_ends_while_threads_wait() -> None:
    code = """
import numpy as np, multihead as mh
mh.set_num_threads(7)
x = np.ones((64, 2, 32), np.float32)
mh.MultiheadAttention(32, 2, seed=0)(x, x, x)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_most_threads_are_taken_and_more_refused() -> None:
    before = mh.get_num_threads()
    try:
        mh.set_num_threads(1024)
        assert mh.get_num_threads() == 1024
        with pytest.raises(ValueError, match=r"n: expected an integer from 1 to 1024, got 1025"):
            mh.set_num_threads(1025)
        assert mh.get_num_threads() == 1024
    finally:
        mh.set_num_threads(before)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("own_cache", [True, False])
def test_threads_on_one_layer_add_up_their_gradients(own_cache: bool) -> None:
    rng = np.random.default_rng(5)
    layer = make_layer(Construction(13, 1, dtype="float32"), rng)
    x = rng.standard_normal((2, 7, 13)).astype(np.float32)
    out, _ = layer(x, x, x)
    cache = layer.cache
    layer.zero_grad()
    for _ in range(8 * 100):
        layer.backward(out, cache=cache)
    expected = {name: grad.copy() for name, grad in layer.grads.items()}
    layer = pickle.loads(pickle.dumps(layer))
    layer._grads = None  # all threads make them at once
    layer(x, x, x)
    cache = layer.cache

    def work(_: int) -> None:
        for _ in range(100):
            if own_cache:
                layer(x, x, x)
                layer.backward(out)
            else:
                layer.backward(out, cache=cache)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    for name, grad in expected.items():
        np.testing.assert_array_equal(layer.grads[name], grad, err_msg=name)


@pytest.mark.timeout(120)
def test_threads_on_one_layer_draw_masks_of_their_own() -> None:
    layer = mh.MultiheadAttention(16, 2, dropout=0.5, batch_first=True, seed=0)
    x = np.random.default_rng(0).standard_normal((1, 40, 16)).astype(np.float32)

    def work(_: int) -> list[bytes]:
        return [layer(x, x, x)[0].tobytes() for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        outs = [out for outs in pool.map(work, range(8)) for out in outs]
    assert layer.rng_state == (0, 400)
    assert len(set(outs)) == 400
    layer.rng_state = (0, 0)
    assert {layer(x, x, x)[0].tobytes() for _ in range(400)} == set(outs)


@pytest.mark.timeout(60)
def test_a_cache_is_of_the_thread_that_made_the_call() -> None:
    layer = mh.MultiheadAttention(16, 2, seed=0)
    x = np.ones((4, 16), np.float32)
    out, _ = layer(x, x, x)
    cache = layer.cache
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: layer.cache).result() is None
        with pytest.raises(ValueError, match=r"^cache: .*this thread has not called the layer"):
            pool.submit(layer.backward, out).result()
        pool.submit(layer.backward, out, cache=cache).result()
    assert layer.cache is cache


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_forked_during_backward_can_compute() -> None:
    code = """
import os
import numpy as np
import multihead as mh
layer = mh.MultiheadAttention(16, 2, dropout=0.5, seed=0)
x = np.ones((4, 16), np.float32)
with layer._lock:  # as another thread holds it during backward
    child = os.fork()
    if child == 0:
        out, _ = layer(x, x, x)
        layer.backward(out)
        os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""
    done = run(code)
    assert done.stdout.strip() == "0", done.stderr
