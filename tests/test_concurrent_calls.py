"""Sixteen threads of the caller at once, whose number of the engine's threads changes meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import multihead as mh
from callers import CALLERS, at_once
from cases import Construction, layer_step, make_call, make_layer
from digests import digest
from multihead import functional
from scripts import printed
from tolerance import GRADIENT, assert_close, tolerance

pytestmark = pytest.mark.timeout(120)


def of_layers(seed: int) -> str:
    rng = np.random.default_rng(seed)
    how = Construction(48, 3, dropout=0.2, add_bias_kv=seed % 2 == 1, dtype="float32")
    call = make_call(how, rng, 2, 70 + seed, 90, padding="bool", mask="float 3-D")
    step = layer_step(make_layer(how, rng), call)
    return digest(step.out, *(step.grads[name] for name in sorted(step.grads)))


def of_functions(seed: int) -> str:
    rng = np.random.default_rng(seed)
    dtype = ("float32", "float64", "float16")[seed % 3]
    q, k, v, d = (
        rng.standard_normal((2, 4, n, 16)).astype(dtype) for n in (seed + 1, 260, 260, seed + 1)
    )
    out, cache = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, dropout_p=0.1, seed=seed, return_cache=True
    )
    return digest(out, *functional.scaled_dot_product_attention_backward(d, cache))


def of_ragged(seed: int) -> str:
    rng = np.random.default_rng(seed)
    layer = mh.MultiheadAttention(32, 4, seed=seed)
    lengths = (3, 0, 120 + seed, 1, 64)
    x = mh.Ragged.from_list([rng.standard_normal((n, 32)).astype(np.float32) for n in lengths])
    out, _ = layer(x, x, x, need_weights=False)
    return digest(out.values, *(grad.values for grad in layer.backward(out)))


def of_steps(seed: int) -> str:
    rng = np.random.default_rng(seed)
    layer = mh.MultiheadAttention(32, 4, batch_first=True, rope=mh.Rope(), seed=seed).eval()
    cache, outs = layer.new_kv_cache(batch=2, capacity=40), []
    for n in (20, 1, 1, 3):
        x = rng.standard_normal((2, n, 32)).astype(np.float32)
        outs.append(layer(x, x, x, is_causal=True, kv_cache=cache)[0])
    return digest(*outs, cache.keys, cache.values)


@pytest.mark.usefixtures("changing")
@pytest.mark.parametrize("work", [of_layers, of_functions, of_ragged, of_steps])
def test_each_caller_has_the_results_that_it_has_alone(work: Callable[[int], str]) -> None:
    expected = [work(seed) for seed in range(CALLERS)]
    for _ in range(3):
        assert at_once(work) == expected


@pytest.mark.usefixtures("changing")
def test_all_kinds_of_calls_at_once() -> None:
    kinds = (of_layers, of_functions, of_ragged, of_steps)
    expected = [kinds[i % 4](i) for i in range(CALLERS)]
    for _ in range(3):
        assert at_once(lambda i: kinds[i % 4](i)) == expected


@pytest.mark.usefixtures("changing")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_a_shared_layer_are_the_sum_of_all(dtype: str) -> None:
    layer = mh.MultiheadAttention(32, 4, batch_first=True, dtype=np.dtype(dtype), seed=0)
    rng = np.random.default_rng(1)
    xs = [rng.standard_normal((2, 30 + i, 32)).astype(dtype) for i in range(CALLERS)]
    grads, inputs = [], []
    for x in xs:
        layer.zero_grad()
        out, _ = layer(x, x, x)
        inputs.append(layer.backward(out)[0])
        grads.append({name: grad.astype(np.float64) for name, grad in layer.grads.items()})
    rounds = 5
    layer.zero_grad()

    def work(i: int) -> None:
        for _ in range(rounds):
            out, _ = layer(xs[i], xs[i], xs[i])
            np.testing.assert_array_equal(layer.backward(out)[0], inputs[i])

    at_once(work)
    for name, grad in layer.grads.items():
        terms = [one[name] for one in grads]
        scale = rounds * float(np.abs(terms).sum(axis=0).max())
        bound = tolerance(GRADIENT, dtype)
        assert_close(grad, rounds * np.sum(terms, axis=0), bound, name, scale=scale)


@pytest.mark.usefixtures("changing")
def test_a_layer_that_is_changed_meanwhile_stays_whole() -> None:
    # What a call reads while another thread writes it is either one's; nothing is lost for later.
    layer = mh.MultiheadAttention(32, 4, batch_first=True, dropout=0.3, seed=0)
    x = np.random.default_rng(1).standard_normal((1, 40, 32)).astype(np.float32)
    state = layer.state_dict()

    def work(i: int) -> bool:
        for _ in range(15):
            if i % 4 == 0:
                layer.zero_grad()
                layer.load_state_dict(state)
            elif i % 4 == 1:
                layer.rng_state = (i, 3)
                layer.train(i % 8 == 1)
            out, _ = layer(x, x, x)
            if i % 4 > 1 and layer.cache is not None:
                layer.backward(out)
        return bool(np.isfinite(out).all())

    assert all(at_once(work))
    layer.train()
    layer.zero_grad()
    layer.rng_state = (5, 5)
    fresh = mh.MultiheadAttention(32, 4, batch_first=True, dropout=0.3, seed=0)
    fresh.rng_state = (5, 5)
    out, expected = layer(x, x, x)[0], fresh(x, x, x)[0]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(layer.backward(out)[0], fresh.backward(out)[0])
    for name, grad in fresh.grads.items():
        np.testing.assert_array_equal(layer.grads[name], grad, err_msg=name)


@pytest.mark.usefixtures("changing")
def test_a_cache_that_threads_share_serves_one_of_them_at_a_time() -> None:
    layer = mh.MultiheadAttention(16, 2, batch_first=True, seed=0).eval()
    x = np.random.default_rng(1).standard_normal((2, 3, 16)).astype(np.float32)
    used = r"^kv_cache: expected a cache of one call at a time, got one that another call is using$"
    for _ in range(10):
        cache = layer.new_kv_cache(batch=2, capacity=64)

        def work(_: int, cache: mh.KVCache = cache) -> tuple[int, set[str]]:
            made, refused = 0, set()
            for _ in range(30):
                try:
                    layer(x, x, x, is_causal=True, kv_cache=cache)
                    made += 1
                except ValueError as error:
                    refused.add(str(error))
            return made, refused

        found = at_once(work)
        texts = set().union(*(refused for _, refused in found))
        assert all(re.match(f"{used}|^kv_cache: expected room for", said) for said in texts)
        made = sum(made for made, _ in found)
        assert 0 < made <= 64 // 3
        assert cache.lengths.tolist() == [3 * made] * 2
        cache.load_state_dict(cache.state_dict())
        rows = cache.keys[:, :, : 3 * made].reshape(2, 2, made, 3, 8)
        assert (rows == rows[:, :, :1]).all()
    with cache.alone():
        for use in (cache.reset, cache.state_dict, lambda: cache.truncate(1)):
            with pytest.raises(ValueError, match=used):
                use()
    cache.reset()


def test_the_first_calls_of_a_process_may_come_at_once() -> None:
    code = """
import threading
import numpy as np
import multihead as mh
from multihead import functional
mh.set_num_threads(8)
q = np.random.default_rng(0).standard_normal((2, 4, 150, 16), np.float32)
begin, found = threading.Barrier(8), []
def attend():
    found.append(functional.scaled_dot_product_attention(q, q, q).tobytes())
def first():
    begin.wait(30)
    attend()
callers = [threading.Thread(target=first) for _ in range(8)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
attend()
print(len(found), len(set(found)))
"""
    assert printed(code) == "9 1\n"
