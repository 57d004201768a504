"""BNNS writes nowhere twice and nowhere that it reads: strides and overlaps are checked before."""

from __future__ import annotations

from ctypes import c_size_t
from typing import Any

import numpy as np
import pytest

from bnns_problem import Options, Problem
from bnns_refused import backward_refused, everything, forward_refused


@pytest.fixture
def problem(rng: np.random.Generator) -> Problem:
    """A layer with everything, and a cache of its forward."""
    return everything(rng)


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
