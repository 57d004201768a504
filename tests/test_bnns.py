"""The BNNS face against the oracle: layouts, dtypes, strides, masks, options, both directions."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
import weakref
from ctypes import c_size_t
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bnns_problem
from bnns_problem import DTYPES, FLOAT32, GRADIENTS, LAYOUTS, Options, Problem
from multihead import bnns
from multihead.bnns import DataLayout
from tolerance import CANCELLED, FORWARD, GRADIENT, assert_close, tolerance


def bound(problem: Problem, kind: str, dtype: Any) -> float:
    """Calls are computed in the dtype of query, and bfloat16 is rounded on the way too."""
    narrow = problem.slots["query"].array.dtype == ml_dtypes.bfloat16
    return max(tolerance(kind, dtype), narrow * 4 * tolerance(kind, ml_dtypes.bfloat16))


def check(problem: Problem, counter: int = 0) -> None:
    """Compare what came out with the oracle, and the memory between with what it was."""
    out, grads, sizes = problem.oracle(counter)
    output = problem.slots["output"]
    assert_close(output.values, out, bound(problem, FORWARD, output.array.dtype), "output")
    assert output.gaps_untouched()
    assert set(grads) == set(problem.grads)
    # scores of rounded numbers: a small probability is not as exact as a large one
    narrow = problem.slots["query"].array.dtype == ml_dtypes.bfloat16
    largest = narrow * max(np.abs(x).max(initial=0.0) for x in grads.values())
    for name, expected in grads.items():
        slot = problem.grads[name]
        old = slot.old().astype(np.float64) if slot.flags else 0.0
        most = bound(problem, GRADIENT, slot.array.dtype)
        scale = CANCELLED * max(sizes.get(name, 0.0), largest)
        assert_close(slot.values, expected + old, most, name, scale=scale)
        assert slot.gaps_untouched(), name
    inputs = [slot for name, slot in problem.slots.items() if name != "output"]
    assert all(slot.untouched() for slot in inputs)


def run(problem: Problem, cached: bool = True) -> None:
    problem.create()
    if cached:
        problem.forward_with_cache()
    else:
        problem.forward()
    problem.backward(cached)


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("number", range(150))
def test_any_problem_agrees_with_the_oracle(
    number: int, cached: bool, rng: np.random.Generator
) -> None:
    problem = Problem.make(rng, Options.draw(rng))
    run(problem, cached)
    check(problem)


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("client", [True, False])
def test_nothing_need_lie_side_by_side(
    client: bool, accumulate: bool, rng: np.random.Generator
) -> None:
    wide = {"d_model": 150, "k_dim": 70, "v_dim": 65, "d_key": 17, "d_value": 33}
    rules = {"attention_biases": True, "key_mask": True, "attention": "float 3"}
    how = {"client": client, "accumulate": accumulate, "gaps": True, "apart": True}
    problem = Problem.make(rng, Options(T=70, S=130, **wide, **rules, **how))
    run(problem, True)
    check(problem)


SLOTS = {
    "query": 2,
    "key": 2,
    "value": 2,
    "output": 2,
    "query.weights": 3,
    "key.weights": 3,
    "value.weights": 3,
    "output.weights": 2,
    "query.bias": 2,
    "key.bias": 2,
    "value.bias": 2,
    "output.bias": 1,
    "key_attn_bias": 2,
    "value_attn_bias": 2,
}


@pytest.mark.parametrize("explicit", [True, False], ids=["strides", "zero strides"])
@pytest.mark.parametrize(
    ("name", "layout"), [(name, x) for name, rank in SLOTS.items() for x in LAYOUTS[rank]]
)
def test_every_layout_fits_every_slot(
    name: str, layout: DataLayout, explicit: bool, rng: np.random.Generator
) -> None:
    options = Options(attention_biases=True, gaps=explicit, explicit=explicit, accumulate=True)
    problem = Problem.make(rng, options)
    for slots in (problem.slots, problem.grads):
        if name in slots:
            old = slots[name]
            slots[name] = bnns_problem.place(
                rng,
                old.array,
                layout,
                gaps=explicit,
                batched=old.batched,
                explicit=explicit,
                flags=old.flags,
            )
    if name == "output":
        old = problem.slots["d_output"]
        problem.slots["d_output"] = bnns_problem.place(rng, old.array, layout, batched=True)
    run(problem)
    check(problem)


@pytest.mark.parametrize(
    "attention", [f"{kind} {n}" for kind in ("float", "bool") for n in (2, 3, 4)]
)
@pytest.mark.parametrize("layout", range(4))
def test_every_form_of_add_to_attention(
    attention: str, layout: int, rng: np.random.Generator
) -> None:
    problem = Problem.make(rng, Options(attention=attention, key_mask=True))
    layouts = LAYOUTS[int(attention[-1])]
    old = problem.slots["attention"]
    problem.slots["attention"] = bnns_problem.place(
        rng, old.array, layouts[layout % len(layouts)], gaps=layout > 1
    )
    run(problem)
    check(problem)


@pytest.mark.parametrize("a", DTYPES, ids=str)
@pytest.mark.parametrize("b", DTYPES, ids=str)
def test_dtypes_mix(a: Any, b: Any, rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(dtypes=(a, b), accumulate=True, key_mask=True))
    run(problem)
    check(problem)


def test_the_cache_changes_no_bits(rng: np.random.Generator) -> None:
    for _ in range(20):
        problem = Problem.make(rng, Options.draw(rng, accumulate=False))
        run(problem, cached=True)
        first = {name: slot.array.copy() for name, slot in problem.grads.items()}
        problem.backward(cached=True)  # a cache may be used again
        second = {name: slot.array.copy() for name, slot in problem.grads.items()}
        problem.backward(cached=False)
        for name, slot in problem.grads.items():
            assert first[name].tobytes() == second[name].tobytes(), name
            assert first[name].tobytes() == slot.array.copy().tobytes(), name


def test_a_cache_is_only_read_and_may_be_moved(rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(dropout=0.4))
    run(problem)
    first = {name: slot.array.copy() for name, slot in problem.grads.items()}
    size = problem.cache_size
    for shift in (1, 4, 17):
        moved = np.zeros(size + 64, np.uint8)
        place = moved[shift : shift + size]
        place[:] = problem.cache
        before = moved.copy()
        problem.backward(cached=True, backprop_cache=place)
        assert (moved == before).all()
        for name, slot in problem.grads.items():
            assert first[name].tobytes() == slot.array.copy().tobytes(), name


def test_a_cache_holds_its_call_s_dropout(rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(dropout=0.4, T=9, S=11))
    problem.create()
    problem.forward_with_cache()
    output = problem.slots["output"].array.copy()
    problem.forward()
    assert not np.array_equal(output, problem.slots["output"].array)  # another call, another mask
    problem.backward(cached=True)
    problem.slots["output"].array[...] = output
    check(problem, counter=0)
    problem.forward()
    problem.backward(cached=False)  # without a cache: the filter's last forward
    check(problem, counter=2)


def test_equal_targets_receive_the_sum(rng: np.random.Generator) -> None:
    for dtype in DTYPES:
        for accumulate in (False, True):
            sizes = {"T": 5, "S": 5, "d_model": 6, "k_dim": 6, "v_dim": 6}
            problem = Problem.make(rng, Options(**sizes, dtypes=(dtype,)))
            shared = problem.grads["query"]
            shared.flags = bnns.NDArrayFlags(int(accumulate))
            old = shared.values if accumulate else 0.0
            problem.grads["key"] = problem.grads["value"] = shared
            run(problem)
            _, grads, _ = problem.oracle()
            total = sum(grads[name] for name in GRADIENTS) + old
            assert_close(shared.values, total, bound(problem, GRADIENT, dtype), f"{dtype}")


@pytest.mark.parametrize("scale", [1.0, 1e-6, 3e-8, 4e4])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_results_are_rounded_to_nearest_even(
    dtype: Any, scale: float, rng: np.random.Generator
) -> None:
    problem = Problem.make(rng, Options(T=64, d_model=48, biases=(True, True, True, False)))
    problem.slots["output.weights"].array[...] *= scale
    problem.create()
    problem.forward()
    exact = problem.slots["output"]
    rounded = bnns_problem.place(
        rng, np.zeros(exact.array.shape, dtype), exact.layout, batched=True
    )
    problem.slots["output"] = rounded
    problem.create()
    problem.forward()
    with np.errstate(over="ignore"):
        expected = exact.array.astype(dtype)
    assert rounded.array.tobytes() == expected.tobytes()
    # and widened exactly: subnormal numbers, infinities and NaN too
    bits = rng.integers(0, 2**16, problem.slots["key"].array.shape).astype(np.uint16).view(dtype)
    wide = bits.astype(np.float32)
    found = []
    for array in (bits, wide):
        problem.slots["key"] = bnns_problem.place(rng, array, exact.layout, batched=True)
        problem.slots["output"] = exact
        problem.create()
        problem.forward()
        found.append(problem.slots["output"].array.copy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_ties_go_to_even(dtype: Any, rng: np.random.Generator) -> None:
    # nothing to see: the output is its bias, to the bit
    problem = Problem.make(rng, Options(key_mask=True, d_model=64))
    problem.slots["key_mask"].array[...] = True
    half = float(ml_dtypes.finfo(dtype).eps) / 2
    signs = np.where(np.arange(64) % 3 == 0, -1, 1)
    ties = (signs * (1 + half * np.arange(64))).astype(np.float32)
    layout = DataLayout.Vector
    problem.slots["output.bias"] = bnns_problem.place(rng, ties, layout)
    shape = problem.slots["output"].array.shape
    layout = DataLayout.TwoDFirstMajor
    problem.slots["output"] = bnns_problem.place(rng, np.zeros(shape, dtype), layout, batched=True)
    problem.create()
    problem.forward()
    expected = np.broadcast_to(ties.astype(dtype), shape)
    assert problem.slots["output"].array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("accumulate", [False, True])
def test_one_array_for_everything(accumulate: bool, rng: np.random.Generator) -> None:
    sizes = {"T": 33, "S": 33, "d_model": 6, "k_dim": 6, "v_dim": 6, "batch": 3}
    problem = Problem.make(rng, Options(**sizes, dtypes=(FLOAT32,)))
    s, g = problem.slots, problem.grads
    s["key"] = s["value"] = s["query"]
    g["key"] = g["value"] = g["query"]
    g["query"].flags = bnns.NDArrayFlags(int(accumulate))
    old = g["query"].values if accumulate else 0.0
    run(problem)
    _, grads, _ = problem.oracle()
    assert_close(g["query"].values, sum(grads[name] for name in GRADIENTS) + old, 1e-5)
    s["output"] = s["query"]  # in place
    expected, _, _ = problem.oracle()
    problem.create()
    problem.forward()
    assert_close(s["query"].values, expected, 2e-6)


def test_an_input_of_batch_stride_0_is_shared(rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(batch=3))
    for name in ("key", "value", "d_output"):
        slot = problem.slots[name]
        slot.array = np.broadcast_to(slot.array[:1], slot.array.shape)
    run(problem)
    check(problem)


def test_gradients_may_lie_side_by_side(rng: np.random.Generator) -> None:
    sizes = {"T": 5, "S": 5, "d_model": 4, "k_dim": 4, "v_dim": 4}
    problem = Problem.make(rng, Options(**sizes))
    packed = np.zeros((2, 5, 12), np.float32)
    for i, name in enumerate(GRADIENTS):
        slot = problem.grads[name]
        slot.layout = DataLayout.TwoDFirstMajor
        slot.explicit = True
        slot.array = packed[..., 4 * i : 4 * i + 4]
        slot.buffer = packed
        slot.keep_state()
    run(problem)
    _, grads, _ = problem.oracle()
    for i, name in enumerate(GRADIENTS):
        assert_close(packed[..., 4 * i : 4 * i + 4], grads[name], 1e-5, name)


@pytest.mark.parametrize("number", range(20))
def test_buffers_of_exactly_the_size_asked_for(number: int, rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options.draw(rng, batch=2))
    problem.create()

    def guarded(size: int) -> tuple[np.ndarray, np.ndarray]:
        whole = np.full(size + 256, 0xA5, np.uint8)
        shift = int(rng.integers(65, 128))
        return whole, whole[shift : shift + size]

    def intact(whole: np.ndarray, inner: np.ndarray) -> bool:
        start = inner.ctypes.data - whole.ctypes.data
        return bool((whole[:start] == 0xA5).all() and (whole[start + inner.size :] == 0xA5).all())

    cache_size, workspace_size = c_size_t(), c_size_t()
    problem.forward(backprop_cache_size=cache_size, workspace_size=workspace_size)
    assert problem.slots["output"].untouched()  # it was a question
    cache, workspace = guarded(cache_size.value), guarded(workspace_size.value)
    buffers: dict[str, Any] = {
        "backprop_cache_size": cache_size,
        "backprop_cache": cache[1],
        "workspace_size": workspace_size,
        "workspace": workspace[1],
    }
    problem.forward(**buffers)
    assert intact(*cache)
    assert intact(*workspace)
    for cached in (True, False):
        problem.cache, problem.cache_size = cache[1], cache_size.value
        size = c_size_t()
        problem.backward(cached, workspace_size=size)
        assert all(slot.untouched() for slot in problem.grads.values()) or not cached
        whole = guarded(size.value)
        problem.backward(cached, workspace_size=size, workspace=whole[1])
        assert intact(*whole)
        assert intact(*cache)
        if cached:
            check(problem)


def test_sizes_do_not_depend_on_threads(rng: np.random.Generator) -> None:
    found = set()
    problem = Problem.make(rng, Options(T=200, S=700, heads=1))
    for threads in (1, 2, 3, 8):
        problem.options.threads = threads
        problem.create()
        cache, forward, backward = c_size_t(), c_size_t(), c_size_t()
        problem.forward(backprop_cache_size=cache, workspace_size=forward)
        problem.backward(False, workspace_size=backward)
        found.add((cache.value, forward.value, backward.value))
    assert len(found) == 1


def test_client_weights_are_read_at_each_call(rng: np.random.Generator) -> None:
    for client in (True, False):
        problem = Problem.make(rng, Options(client=client))
        problem.create()
        problem.forward()
        before, _, _ = problem.oracle()
        problem.slots["value.weights"].array[...] *= 2
        problem.forward()
        after, _, _ = problem.oracle()
        expected = after if client else before
        assert_close(problem.slots["output"].values, expected, 2e-6)


def test_a_query_with_nothing_to_see_gets_zeros(rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(biases=(True, True, True, False), key_mask=True))
    problem.slots["key_mask"].array[...] = True
    problem.slots["key_mask"].keep_state()
    run(problem)
    assert not problem.slots["output"].array.any()
    assert not any(problem.grads[name].array.any() for name in GRADIENTS)


def test_a_hidden_key_is_never_read(rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(key_mask=True, S=9))
    hidden = problem.slots["key_mask"].array
    hidden[...] = False
    hidden[:, 2:4] = True
    for name in ("key", "value"):
        problem.slots[name].array[:, 2:4] = np.nan
    for slot in problem.slots.values():
        slot.keep_state()
    run(problem)
    assert np.isfinite(problem.slots["output"].values).all()
    check_finite = [slot.values for slot in problem.grads.values()]
    assert all(np.isfinite(x).all() for x in check_finite)


def test_an_empty_batch_sets_the_sums_to_zero(rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(batch=0))
    run(problem, cached=False)
    for name, slot in problem.grads.items():
        if name not in GRADIENTS:
            assert not slot.array.any(), name


@pytest.mark.parametrize(("T", "S"), [(0, 5), (5, 0), (0, 0)])
def test_empty_sequences(T: int, S: int, rng: np.random.Generator) -> None:
    problem = Problem.make(rng, Options(T=T, S=S))
    run(problem)
    bias = problem.slots["output.bias"].values
    if T:
        output = problem.slots["output"].values
        assert_close(output, np.broadcast_to(bias, output.shape), 1e-6)
    for name in ("query.weights", "key.weights"):
        assert not problem.grads[name].array.any()


def test_equal_targets_of_one_item_whatever_its_stride(rng: np.random.Generator) -> None:
    sizes = {"T": 5, "S": 5, "d_model": 6, "k_dim": 6, "v_dim": 6, "batch": 1}
    problem = Problem.make(rng, Options(**sizes))
    problem.create()
    problem.forward_with_cache()
    deltas = {name: problem.delta(name) for name in GRADIENTS}
    for name, stride in zip(GRADIENTS, (0, 32, 64), strict=True):
        deltas[name].target_desc = problem.grads["query"].descriptor()
        deltas[name].target_desc.stride[2] = stride
    problem.backward(cached=True, **{f"{name}_param_delta": d for name, d in deltas.items()})
    _, grads, _ = problem.oracle()
    assert_close(problem.grads["query"].values, sum(grads[name] for name in GRADIENTS), 1e-5)


def test_structs_keep_their_arrays_alive() -> None:
    array = np.zeros((2, 3), np.float32)
    alive = weakref.ref(array)
    p = bnns.MHAProjectionParameters(weights=bnns.NDArrayDescriptor.from_array(array))
    p.bias = bnns.NDArrayDescriptor.from_array(np.ones(3, np.float32))
    layer = bnns.LayerParametersMultiheadAttention(query=p)
    del array, p
    gc.collect()
    assert alive() is not None
    del layer
    gc.collect()
    assert alive() is None


def test_sizes_depend_on_shapes_and_types_alone(rng: np.random.Generator) -> None:
    for dtype in DTYPES:
        found = set()
        for misaligned in (False, True):
            options = Options(dtypes=(dtype,), misaligned=misaligned, gaps=misaligned)
            problem = Problem.make(rng, options)
            problem.create()
            nothing = dict.fromkeys((*GRADIENTS, "output"))
            for given in ({}, nothing):
                sizes = [c_size_t() for _ in range(3)]
                problem.forward(backprop_cache_size=sizes[0], workspace_size=sizes[1], **given)
                problem.backward(False, workspace_size=sizes[2], **given)
                found.add(tuple(size.value for size in sizes))
        assert len(found) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects a page with mprotect")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_keys_may_lie_in_memory_that_cannot_be_read(
    dtype: Any, rng: np.random.Generator
) -> None:
    problem = Problem.make(rng, Options(batch=1, key_mask=True, S=9, dtypes=(dtype,)))
    hidden = problem.slots["key_mask"].array
    hidden[...] = np.arange(9) >= 6
    problem.slots["key_mask"].keep_state()
    expected, grads, _ = problem.oracle()
    # values end where a page ends, and the hidden ones would be in the next
    page = mmap.PAGESIZE
    room = mmap.mmap(-1, 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(room))
    value = problem.slots["value"]
    seen = np.ascontiguousarray(value.array[0, :6])
    start = page - seen.nbytes
    np.frombuffer(room, np.uint8)[start:page] = seen.view(np.uint8).ravel()
    value.layout, value.explicit = DataLayout.TwoDFirstMajor, True
    value.array = value.buffer = np.ascontiguousarray(value.array)
    problem.create()
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(base + page), page, 0) == 0
    try:
        problem.forward(value=base + start)
        problem.backward(cached=False, value=base + start)
    finally:
        assert libc.mprotect(ctypes.c_void_p(base + page), page, 3) == 0
    out = problem.slots["output"]
    assert_close(out.values, expected, bound(problem, FORWARD, out.array.dtype))
    d_value = problem.grads["value"]
    assert_close(d_value.values, grads["value"], bound(problem, GRADIENT, d_value.array.dtype))
