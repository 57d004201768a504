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
from multihead import bnns
from multihead.bnns import BNNSError, DataLayout, DataType


@pytest.fixture
def problem(rng: np.random.Generator) -> Problem:
    """A layer with everything, and a cache of its forward."""
    sizes = {"T": 5, "S": 5, "d_model": 6, "k_dim": 6, "v_dim": 6, "batch": 2}
    made = Problem.make(
        rng,
        Options(**sizes, attention_biases=True, key_mask=True, attention="float 2", gaps=True),
    )
    made.create()
    made.forward_with_cache()
    for slot in (*made.slots.values(), *made.grads.values()):
        slot.keep_state()
    made.cache_before = made.cache.copy()
    return made


def refused(problem: Problem, call: Callable[..., int], arguments: list[Any], *words: str) -> None:
    """Assert that a call fails both ways, says why, and writes nothing."""
    assert call(*arguments, raw=True) == -1
    reason = bnns.last_error()
    for word in words:
        assert word in reason, reason
    with pytest.raises(BNNSError, match=words[0]):
        call(*arguments)
    for name, slot in (*problem.slots.items(), *problem.grads.items()):
        assert slot.untouched(), name
    assert (problem.cache == problem.cache_before).all()


def forward_refused(problem: Problem, *words: str, **given: Any) -> None:
    arguments = problem.forward_arguments(**given)
    refused(problem, bnns.BNNSApplyMultiheadAttention, arguments, *words)


def backward_refused(problem: Problem, *words: str, cached: bool = True, **given: Any) -> None:
    cache = {"backprop_cache_size": problem.cache_size, "backprop_cache": problem.cache}
    arguments = problem.backward_arguments(**((cache if cached else {}) | given))
    refused(problem, bnns.BNNSApplyMultiheadAttentionBackward, arguments, *words)


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


# strides and overlaps


@pytest.mark.parametrize("stride", [0, 1, 7])
def test_batch_items_of_an_output_lie_apart(stride: int, problem: Problem) -> None:
    forward_refused(problem, "output_stride", output_stride=stride)
    delta = problem.delta("query")
    delta.target_desc.stride[2] = stride
    backward_refused(problem, "query_param_delta.target_desc", query_param_delta=delta)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_a_stride_must_not_overflow(name: str, problem: Problem) -> None:
    for stride in (2**47, 2**63, 2**64 - 1):
        forward_refused(problem, f"{name}_stride", **{f"{name}_stride": stride})


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_an_output_overlaps_no_input(name: str, problem: Problem) -> None:
    address = problem.slots[name].array.ctypes.data + 4
    forward_refused(problem, "output", "overlap", output=address)


def test_buffers_overlap_nothing(problem: Problem) -> None:
    cache, workspace = c_size_t(), c_size_t()
    problem.forward(backprop_cache_size=cache, workspace_size=workspace)
    sizes = {"backprop_cache_size": cache, "workspace_size": workspace}
    room = np.zeros(cache.value + workspace.value, np.uint8)
    both = {"backprop_cache": room[8:], "workspace": room}
    forward_refused(problem, "backprop_cache", "overlap", **sizes, **both)
    query = problem.slots["query"].array.ctypes.data
    given = {"workspace_size": c_size_t(1 << 30), "workspace": query}
    forward_refused(problem, "workspace", "overlap", **given)
    backward_refused(
        problem,
        "workspace",
        "overlap",
        workspace_size=c_size_t(1 << 30),
        workspace=problem.cache,
    )


def test_gradients_overlap_nothing(problem: Problem) -> None:
    delta = problem.delta("key")
    delta.target_desc.data = problem.grads["query"].array.ctypes.data + 4
    backward_refused(problem, "key_param_delta.target_desc", "overlap", key_param_delta=delta)
    delta = problem.delta("value")
    delta.weights.data = problem.slots["d_output"].array.ctypes.data
    backward_refused(problem, "value_param_delta.weights", "overlap", value_param_delta=delta)
    query, key = problem.delta("query"), problem.delta("query")
    key.target_desc.flags = 1
    key.weights.data = key.bias.data = None
    backward_refused(
        problem,
        "key_param_delta.target_desc.flags",
        "same memory",
        query_param_delta=query,
        key_param_delta=key,
    )


ROOM = 2**16  # bytes, more than a call of `clients` writes to a buffer


@pytest.fixture
def clients(rng: np.random.Generator) -> Problem:
    """A layer whose weights stay where they are, so that calls read them there."""
    sizes = {"T": 5, "S": 5, "d_model": 6, "k_dim": 6, "v_dim": 6, "batch": 2}
    made = Problem.make(
        rng,
        Options(**sizes, attention_biases=True, key_mask=True, attention="float 2", client=True),
    )
    # room after each array, where a call that is wrongly taken writes, and is seen
    for slot in (*made.slots.values(), *made.grads.values()):
        room = np.zeros(slot.buffer.size + ROOM, np.uint8)
        room[: slot.buffer.size] = slot.buffer
        slot.array, slot.buffer = slot.old(room), room
        slot.keep_state()
    made.create()
    made.forward_with_cache()
    made.slots["output"].keep_state()
    made.cache = np.concatenate([made.cache, np.zeros(ROOM, np.uint8)])
    made.cache_before = made.cache.copy()
    return made


def buffer_at(name: str, address: int) -> dict[str, Any]:
    """A call's buffer there, as large as it may have to be."""
    return {name: address} if name == "output" else {name: address, f"{name}_size": c_size_t(ROOM)}


@pytest.mark.parametrize("written", ["output", "backprop_cache", "workspace"])
def test_forward_writes_over_nothing_that_it_reads(written: str, clients: Problem) -> None:
    read = set(clients.slots) - {"output", "d_output"}
    assert len(read) == 15
    for name in read:
        at = buffer_at(written, clients.slots[name].array.ctypes.data + 4)
        forward_refused(clients, f"{written}: expected memory apart from", "overlap", **at)
    others = {"output", "backprop_cache", "workspace"} - {written}
    room = np.zeros(2 * ROOM, np.uint8)
    for other in others:
        at = buffer_at(written, room[64:].ctypes.data) | buffer_at(other, room.ctypes.data)
        forward_refused(clients, "expected memory apart from", "overlap", **at)
    assert not room.any()


def test_backward_writes_over_nothing_that_it_reads(clients: Problem) -> None:
    read = [slot.array for name, slot in clients.slots.items() if name != "output"]
    for array in (*read, clients.cache):
        address = array.ctypes.data + 4
        backward_refused(clients, "workspace", "overlap", **buffer_at("workspace", address))
        for wanted in clients.grads:
            of, _, part = wanted.partition(".")
            if of.endswith("_bias"):
                delta: Any = clients.delta_of(of)
                delta.data, argument = address, f"{of}_delta"
            else:
                delta, argument = clients.delta(of), f"{of}_param_delta"
                getattr(delta, part or "target_desc").data = address
            given = {argument: delta}
            backward_refused(clients, argument, "overlap", **given)


def test_a_gradient_does_not_overlap_itself(problem: Problem) -> None:
    delta = problem.delta("query")
    delta.weights.stride[:3] = [1, 1, 1]
    backward_refused(problem, "query_param_delta.weights", query_param_delta=delta)


# descriptors


def spoil(d: bnns.NDArrayDescriptor, how: str) -> None:
    if how == "layout":
        d.layout = 0x12345
    elif how == "rank":
        d.layout = DataLayout.FourDLastMajor
    elif how == "data_type":
        d.data_type = DataType.Int32
    elif how == "size":
        d.size[0] += 1
    elif how == "huge":
        d.size[0] = 2**63
    elif how == "stride":
        d.stride[1] = 2**64 - 8


HOW = ["layout", "rank", "data_type", "size", "huge", "stride"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("part", ["target_desc", "weights", "bias"])
@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
def test_create_refuses_a_wrong_descriptor(
    name: str, part: str, how: str, problem: Problem
) -> None:
    layer = problem.layer()
    d = getattr(getattr(layer, name), part)
    if part == "bias" and d.size[1] == 0 and how == "stride":
        d.stride[0] = 2**64 - 8
    else:
        spoil(d, how)
    assert bnns.BNNSFilterCreateLayerMultiheadAttention(layer, raw=True) is None
    # where two sizes differ, either may be the wrong one
    assert (".size: expected" if how == "size" else f"{name}.{part}") in bnns.last_error()
    with pytest.raises(BNNSError, match="expected"):
        bnns.Filter(layer)


def test_create_refuses_what_does_not_go_together(problem: Problem) -> None:
    def refused_layer(change: Callable[[Any, Any], None], word: str) -> None:
        layer, options = problem.layer(), bnns.FilterParameters()
        change(layer, options)
        assert bnns.BNNSFilterCreateLayerMultiheadAttention(layer, options, raw=True) is None
        assert word in bnns.last_error(), bnns.last_error()

    def no_data(name: str) -> Callable[[Any, Any], None]:
        def change(layer: Any, options: Any) -> None:
            field = layer
            for part in name.split("."):
                field = getattr(field, part)
            field.data = None

        return change

    for name in ("key_attn_bias", "value_attn_bias", "key.weights", "output.weights"):
        refused_layer(no_data(name), name)
    refused_layer(
        lambda layer, options: setattr(
            options, "alloc_memory", bnns.ALLOCATE(lambda *arguments: 0)
        ),
        "alloc_memory",
    )
    refused_layer(lambda layer, options: setattr(options, "flags", 6), "flags")
    assert bnns.BNNSFilterCreateLayerMultiheadAttention(None, raw=True) is None
    assert "layer_params" in bnns.last_error()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["key_mask", "add_to_attention"])
def test_apply_refuses_a_wrong_mask(name: str, how: str, problem: Problem) -> None:
    d = problem.mask("key_mask" if name == "key_mask" else "attention")
    assert d is not None
    if how == "stride" and name == "key_mask":
        d.stride[0] = 2**64 - 8
    else:
        spoil(d, how)
    forward_refused(problem, name, **{name: d})
    backward_refused(problem, name, **{name: d})


def test_a_mask_has_an_address_and_a_fitting_type(problem: Problem) -> None:
    for name, slot in (("key_mask", "key_mask"), ("add_to_attention", "attention")):
        d = problem.mask(slot)
        assert d is not None
        d.data = None
        forward_refused(problem, f"{name}.data", "NULL", **{name: d})
    d = problem.mask("key_mask")
    assert d is not None
    d.data_type = DataType.Float32
    forward_refused(problem, "key_mask.data_type", "Boolean", key_mask=d)


@pytest.mark.parametrize("how", [*HOW, "boolean"])
@pytest.mark.parametrize("part", ["target_desc", "weights", "bias"])
@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
def test_backward_refuses_a_wrong_gradient(
    name: str, part: str, how: str, problem: Problem
) -> None:
    delta = problem.delta(name)
    d = getattr(delta, part)
    if how == "boolean":
        d.data_type = DataType.Boolean
    elif part == "bias" and name == "output" and how == "stride":
        d.stride[0] = 2**64 - 8
    else:
        spoil(d, how)
    field = f"{name}_param_delta"
    backward_refused(problem, f"{field}.{part}", **{field: delta})


def test_backward_refuses_gradients_of_what_is_not_there(rng: np.random.Generator) -> None:
    everything = Problem.make(rng, Options(attention_biases=True))
    bare = Problem.make(rng, Options(biases=(False,) * 4))
    bare.create()
    bare.forward_with_cache()
    for slot in (*bare.slots.values(), *bare.grads.values()):
        slot.keep_state()
    bare.cache_before = bare.cache.copy()
    for name in ("key_attn_bias", "value_attn_bias"):
        given = {f"{name}_delta": everything.delta_of(name)}
        backward_refused(bare, f"{name}_delta", "no such bias", **given)
    for name in (*GRADIENTS, "output"):
        delta = bare.delta(name)
        delta.bias = everything.grads[f"{name}.bias"].descriptor()
        given = {f"{name}_param_delta": delta}
        backward_refused(bare, f"{name}_param_delta.bias", "no such bias", **given)


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
