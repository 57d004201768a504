"""Descriptors of half precision: the engine reads, writes and adds where the arrays lie."""

from __future__ import annotations

import ctypes
from ctypes import c_size_t
from typing import Any

import numpy as np
import pytest

import bnns_problem
from bnns_problem import DTYPES, FLOAT32, Options, Problem
from multihead import bnns

HALF = DTYPES[1:]
SIZES = {"T": 13, "S": 37, "d_model": 23, "k_dim": 9, "v_dim": 31, "d_key": 6, "d_value": 7}


class Ledger:
    """An allocator, and how many bytes it was asked for each time."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.held: dict[int, Any] = {}
        self.pair = bnns.ALLOCATE(self._allocate), bnns.FREE(self._free)

    def _allocate(self, data: Any, align: int, size: int) -> int:
        self.asked.append(size)
        room = ctypes.create_string_buffer(size + align)
        address = -(-ctypes.addressof(room) // align) * align
        self.held[address] = room
        data[0] = address
        return 0

    def _free(self, address: Any) -> None:
        del self.held[address]


def memory(problem: Problem) -> dict[str, list[int]]:
    """What create, forward and backward ask for, with a cache and workspaces of the caller's."""
    ledger = Ledger()
    problem.options.allocator = ledger.pair
    found = {}
    problem.create()
    found["create"], ledger.asked = ledger.asked, []
    size, room = c_size_t(), c_size_t()
    problem.forward(backprop_cache_size=size, workspace_size=room)
    problem.cache_size, problem.cache = size.value, np.zeros(size.value, np.uint8)
    given = {"backprop_cache_size": size, "backprop_cache": problem.cache}
    ledger.asked.clear()
    problem.forward(**given, workspace_size=room, workspace=np.zeros(room.value, np.uint8))
    found["forward"], ledger.asked = ledger.asked, []
    problem.backward(True, workspace_size=room)
    ledger.asked.clear()
    place = np.zeros(room.value, np.uint8)
    problem.backward(True, workspace_size=room, workspace=place)
    found["backward"] = ledger.asked
    problem.filter.destroy()
    assert not ledger.held
    return found


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_nothing_is_copied(
    dtype: Any, accumulate: bool, client: bool, rng: np.random.Generator
) -> None:
    how = {"client": client, "accumulate": accumulate, "attention": "float 3", "threads": 1}
    asked = []
    for kind in (FLOAT32, dtype):
        options = Options(**SIZES, **how, dtypes=(kind,), attention_biases=True, gaps=True)
        asked.append(memory(Problem.make(np.random.default_rng(3), options)))
    wide, narrow = asked
    for step in ("forward", "backward"):
        assert len(narrow[step]) == len(wide[step]), step
    if not client:  # the filter's copies are of the arrays' own type
        parameters = sum(wide["create"]) - sum(narrow["create"])
        assert parameters > 0.4 * wide["create"][-1]


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_arrays_that_are_not_aligned_have_the_same_bits(dtype: Any, accumulate: bool) -> None:
    found = []
    for misaligned in (False, True):
        options = Options(
            **SIZES, dtypes=(dtype,), accumulate=accumulate, misaligned=misaligned, key_mask=True
        )
        problem = Problem.make(np.random.default_rng(5), options)
        problem.create()
        problem.forward_with_cache()
        problem.backward(cached=True)
        slots = {"output": problem.slots["output"]} | problem.grads
        found.append({name: slot.array.copy().tobytes() for name, slot in slots.items()})
        assert all(slot.gaps_untouched() for slot in slots.values())
    assert found[0] == found[1]


@pytest.mark.parametrize("misaligned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flags_of_an_output_do_not_count(
    dtype: Any, misaligned: bool, rng: np.random.Generator
) -> None:
    problem = Problem.make(rng, Options(**SIZES, dtypes=(dtype,), misaligned=misaligned))
    output = problem.slots["output"]
    found = []
    for flags in (bnns.NDArrayFlags.BackpropSet, bnns.NDArrayFlags.BackpropAccumulate):
        output.flags = flags
        output.array[...] = 3
        problem.create()
        problem.forward()
        found.append(output.array.copy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_shared_targets_are_rounded_once(dtype: Any, rng: np.random.Generator) -> None:
    sizes = {"T": 33, "S": 33, "d_model": 6, "k_dim": 6, "v_dim": 6}
    problem = Problem.make(rng, Options(**sizes, dtypes=(dtype,)))
    wide = bnns_problem.place(
        rng,
        problem.grads["query"].array.astype(np.float32),
        problem.grads["query"].layout,
        batched=True,
    )
    found = []
    for shared in (wide, problem.grads["query"]):
        for name in bnns_problem.GRADIENTS:
            problem.grads[name] = shared
        problem.create()
        problem.forward_with_cache()
        problem.backward(cached=True)
        found.append(shared.array.copy())
    np.testing.assert_array_equal(found[0].astype(dtype), found[1])
