"""Whatever is wrong with a BNNS call: -1, a reason that names the parameter, nothing written."""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Callable
from ctypes import c_size_t
from typing import Any

import numpy as np
import pytest

from bnns_problem import GRADIENTS, Options, Problem
from bnns_refused import backward_refused, everything, forward_refused
from multihead import bnns
from multihead.bnns import BNNSError, DataLayout


@pytest.fixture
def problem(rng: np.random.Generator) -> Problem:
    """A layer with everything, and a cache of its forward."""
    return everything(rng)


# what may be NULL, and what may not


@pytest.mark.parametrize("name", ["query", "key", "value", "output", "F"])
def test_forward_needs(name: str, problem: Problem) -> None:
    forward_refused(problem, name, "NULL", **{name: None})


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_backward_needs_inputs_without_a_cache(name: str, problem: Problem) -> None:
    given = {name: None, f"{name}_param_delta": None}
    backward_refused(problem, name, "backprop_cache", cached=False, **given)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_backward_needs_an_input_for_its_weights(name: str, problem: Problem) -> None:
    backward_refused(problem, name, "gradient of its weights", **{name: None})


def test_backward_needs_the_gradient_of_the_output(problem: Problem) -> None:
    backward_refused(problem, "output_param_delta", output_param_delta=None)
    delta = problem.delta("output")
    delta.target_desc.data = None
    backward_refused(problem, "output_param_delta.target_desc", "NULL", output_param_delta=delta)
    backward_refused(problem, "F", F=None)


def test_everything_else_may_be_null(problem: Problem) -> None:
    _, grads, _ = problem.oracle()
    delta = problem.delta("output")
    delta.weights.data = delta.bias.data = None
    nothing = dict.fromkeys(
        (
            *("query", "key", "value", "output", "query_param_delta", "key_param_delta"),
            *("value_param_delta", "key_attn_bias_delta", "value_attn_bias_delta"),
        )
    )
    problem.backward(cached=True, **nothing, output_param_delta=delta)
    assert all(slot.untouched() for slot in problem.grads.values())
    # the gradients of inputs and biases need no inputs when there is a cache
    given: dict[str, Any] = dict.fromkeys((*GRADIENTS, "output"))
    for name in GRADIENTS:
        given[f"{name}_param_delta"] = problem.delta(name)
        given[f"{name}_param_delta"].weights.data = None
    problem.backward(cached=True, **given)
    for name in (*GRADIENTS, "query.bias", "key.bias", "value.bias", "output.weights"):
        largest = np.abs(grads[name]).max()
        assert np.abs(problem.grads[name].values - grads[name]).max() < 1e-5 * largest, name
    assert all(problem.grads[f"{name}.weights"].untouched() for name in GRADIENTS)


def test_destroying_nothing_is_harmless() -> None:
    bnns.BNNSFilterDestroy(None)


# sizes


def test_a_byte_too_few_is_refused(problem: Problem) -> None:
    cache, workspace = c_size_t(), c_size_t()
    problem.forward(backprop_cache_size=cache, workspace_size=workspace)
    buffers = {
        "backprop_cache": np.zeros(cache.value, np.uint8),
        "workspace": np.zeros(workspace.value, np.uint8),
    }
    sizes = {"backprop_cache_size": cache, "workspace_size": workspace}
    for name in sizes:
        less = sizes | {name: c_size_t(sizes[name].value - 1)}
        forward_refused(problem, name, "at least", **less, **buffers)
        assert not any(buffer.any() for buffer in buffers.values())
        forward_refused(problem, name, "NULL", **(sizes | {name: None}), **buffers)
    backward_refused(
        problem, "backprop_cache_size", "at least", backprop_cache_size=problem.cache_size - 1
    )
    size = c_size_t()
    problem.backward(cached=True, workspace_size=size)
    room = np.zeros(size.value, np.uint8)
    less = {"workspace_size": c_size_t(size.value - 1), "workspace": room}
    backward_refused(problem, "workspace_size", "at least", **less)
    backward_refused(problem, "workspace_size", "NULL", workspace_size=None, workspace=room)
    assert not room.any()


def test_a_cache_must_be_of_this_call(problem: Problem) -> None:
    other = np.zeros_like(problem.cache)
    backward_refused(problem, "backprop_cache", "something else", backprop_cache=other)
    backward_refused(problem, "backprop_cache", "another call", key_mask=None)
    problem.options.batch = 1
    backward_refused(problem, "backprop_cache", "another call")


@pytest.mark.parametrize("size", [2**31, 2**63, 2**64 - 1])
def test_a_batch_is_not_endless(size: int, problem: Problem) -> None:
    forward_refused(problem, "batch_size", batch_size=size)
    backward_refused(problem, "batch_size", batch_size=size)


# memory, and filters that are not those


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
@pytest.mark.parametrize("step", ["create", "forward", "backward", "backward alone"])
def test_no_memory_is_a_failure_like_any_other(
    step: str, dtype: Any, rng: np.random.Generator
) -> None:
    problem = Problem.make(rng, Options(dtypes=(np.dtype(dtype),), dropout=0.3))
    held: dict[int, Any] = {}
    granted = [10**6]

    @bnns.ALLOCATE
    def allocate(data: Any, align: int, size: int) -> int:
        granted[0] -= 1
        if granted[0] < 0:
            return -1
        room = ctypes.create_string_buffer(size + align)
        address = -(-ctypes.addressof(room) // align) * align
        held[address] = room
        data[0] = address
        return 0

    @bnns.FREE
    def free(address: Any) -> None:
        del held[address]

    problem.options.allocator = (allocate, free)
    if step != "create":
        problem.create()
        problem.forward_with_cache()
    for slot in (*problem.slots.values(), *problem.grads.values()):
        slot.keep_state()
    cache = c_size_t(problem.cache_size)
    calls: dict[str, Callable[[], None]] = {
        "create": problem.create,
        "forward": lambda: problem.forward(backprop_cache_size=cache, backprop_cache=problem.cache),
        "backward": lambda: problem.backward(cached=True),
        "backward alone": lambda: problem.backward(cached=False),
    }
    before = None if problem.cache is None else problem.cache.copy()
    for count in itertools.count():
        granted[0] = count
        try:
            calls[step]()
            break
        except BNNSError:
            pass
        assert "out of memory" in bnns.last_error()
        for name, slot in (*problem.slots.items(), *problem.grads.items()):
            assert slot.untouched(), (count, name)
        assert before is None or (problem.cache == before).all()
    assert count > 0  # something was asked for
    problem.filter = None
    gc.collect()
    assert not held


def test_sizes_whose_product_wraps_are_refused(problem: Problem) -> None:
    small = np.zeros(1 << 12, np.float32)
    layer = problem.layer()
    for name in GRADIENTS:
        d = getattr(layer, name).weights
        d.layout = DataLayout.ThreeDLastMajor
        d.size[:3] = [1 << 21, 1 << 21, 1 << 20]
        d.stride[:3] = [1, 1, 1]
        d.data = small.ctypes.data
    d = layer.output.weights
    d.layout = DataLayout.TwoDLastMajor
    d.size[:2] = [1 << 41, 1 << 21]
    d.stride[:2] = [1, 1]
    assert bnns.BNNSFilterCreateLayerMultiheadAttention(layer, raw=True) is None
    assert "2^46" in bnns.last_error()
    forward_refused(problem, "query_stride", batch_size=2**31 - 1, query_stride=2**40)


@pytest.mark.parametrize("large", ["batch", "heads", "d_key", "d_value"])
def test_each_size_counts_in_their_product(large: str, rng: np.random.Generator) -> None:
    sizes = dict.fromkeys(("batch", "d_model", "k_dim", "v_dim", "heads", "d_key", "d_value"), 1)
    problem = Problem.make(rng, Options(**sizes, T=1, S=1, biases=(False,) * 4, client=True))
    tokens, sizes[large] = 1 << 17, 1 << 29
    layer, small = problem.layer(), np.zeros(1, np.float32)
    for name in (*GRADIENTS, "output"):
        projection = getattr(layer, name)
        target, weights = projection.target_desc, projection.weights
        target.layout = DataLayout.TwoDLastMajor
        target.size[:2], target.stride[:2] = [tokens, 1], [1, tokens]
        width = sizes["d_value" if name in ("value", "output") else "d_key"]
        weights.layout, weights.data = DataLayout.ThreeDLastMajor, small.ctypes.data
        weights.size[:3], weights.stride[:3] = [1, width, sizes["heads"]], [0, 0, 0]
        if name == "output":
            weights.layout = DataLayout.TwoDLastMajor
            weights.size[:3], weights.stride[:3] = [sizes["heads"] * width, 1, 0], [0, 0, 0]
    problem.filter = bnns.Filter(layer, problem.filter_parameters())
    arguments = problem.forward_arguments(
        batch_size=sizes["batch"],
        query_stride=0,
        key_stride=0,
        value_stride=0,
        output_stride=tokens,
    )
    for wanted in (13, 15):  # the sizes of the cache and of the workspace
        size = c_size_t()
        asked = [*arguments[:wanted], size, *arguments[wanted + 1 :]]
        with pytest.raises(BNNSError, match=r"sizes whose product is below 2\*\*62"):
            bnns.BNNSApplyMultiheadAttention(*asked)
        assert size.value == 0


def test_a_cache_is_of_its_filter(problem: Problem) -> None:
    problem.create()
    backward_refused(problem, "backprop_cache", "another call")


def test_python_refuses_to_write_where_it_must_not(problem: Problem) -> None:
    frozen = problem.slots["output"].array.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="output: expected a writable array"):
        problem.forward(output=frozen)
    delta = problem.delta("query")
    frozen = problem.grads["query"].array[0].copy()
    frozen.flags.writeable = False
    delta.target_desc = bnns.NDArrayDescriptor.from_array(frozen)
    with pytest.raises(ValueError, match=r"query_param_delta\.target_desc: expected a writable"):
        problem.backward(cached=True, query_param_delta=delta)
    with pytest.raises(ValueError, match="native byte order"):
        bnns.NDArrayDescriptor.from_array(np.zeros((2, 2), ">f4"))


def test_an_error_is_forgotten_by_the_next_call(problem: Problem) -> None:
    forward_refused(problem, "query", query=None)
    problem.forward()
    assert bnns.last_error() == ""
