"""What may run out of memory: making, changing, copying and storing layers, caches and filters."""

from __future__ import annotations

import copy
import pickle
import tempfile
from ctypes import c_size_t
from pathlib import Path
from typing import Any

import numpy as np

import multihead as mh
from bnns_problem import Options, Problem
from memory_faults import RNG, Case, normal


def layer(seed: int = 0) -> mh.MultiheadAttention:
    return mh.MultiheadAttention(64, 4, num_kv_heads=2, batch_first=True, seed=seed)


def construction() -> Case:
    def call() -> Any:
        made = layer()
        return [*made.parameters().values(), *made.grads.values()]

    return Case(call, [])


def loading() -> Case:
    made, state = layer(1), {n: x.astype(">f8") for n, x in layer(2).state_dict().items()}
    first = {name: x.copy() for name, x in made.parameters().items()}

    def prepare() -> None:
        for name, x in made.parameters().items():
            x[...] = first[name]

    def call() -> Any:
        made.load_state_dict(state)
        return made.parameters().values()

    return Case(call, [*made.parameters().values(), *state.values()], prepare)


def copying() -> Case:
    made = layer()
    x = normal(2, 70, 64)
    made(x, x, x)

    def call() -> Any:
        again = copy.deepcopy(made)
        other = pickle.loads(pickle.dumps(made))
        return [y for z in (again, other) for y in z.parameters().values()]

    return Case(call, [x, *made.parameters().values()])


def checkpoint() -> Case:
    made, cache = layer(), layer().new_kv_cache(2, 30)
    folder = tempfile.TemporaryDirectory()
    path, other = Path(folder.name) / "layer", Path(folder.name) / "cache"
    x = normal(2, 5, 64)
    made.eval()(x, x, x, need_weights=False, kv_cache=cache)

    def call() -> Any:
        assert folder
        mh.checkpoint.save(made, path)
        mh.checkpoint.save_cache(cache, other)
        return [
            *mh.checkpoint.load(path).parameters().values(),
            *mh.checkpoint.load_cache(other).state_dict().values(),
        ]

    return Case(call, [x, cache._keys, cache._values, *made.parameters().values()])


def key_value_cache() -> Case:
    made, x = layer().eval(), normal(2, 5, 64)
    kept = made.new_kv_cache(2, 40)
    made(x, x, x, need_weights=False, kv_cache=kept)
    watched = [kept._keys, kept._values, kept._lengths, kept._rows]

    def call() -> Any:
        cache = made.new_kv_cache(2, 40)
        cache.load_state_dict(kept.state_dict())
        out, weights = made(x, x, x, kv_cache=cache)
        again = copy.deepcopy(cache)
        return [out, weights, *again.state_dict().values()]

    return Case(call, watched)


def step_with_weights() -> Case:
    made, x = layer().eval(), normal(2, 5, 64)
    cache = made.new_kv_cache(2, 40)
    made(x, x, x, need_weights=False, kv_cache=cache)
    mask = np.where(RNG.random((5, 10)) < 0.3, -np.inf, 0.0).astype(np.float32)

    def prepare() -> None:
        cache.lengths = [5, 5]

    def call() -> Any:
        return made(x, x, x, attn_mask=mask, average_attn_weights=False, kv_cache=cache)

    return Case(call, [x, mask, cache._lengths, cache._rows], prepare)


def ragged_arrays() -> Case:
    parts = [normal(n, 64) for n in (3, 0, 90)]

    def call() -> Any:
        batch = mh.Ragged.from_list(parts)
        return [batch.values, batch.to_padded(), *batch[1:].to_list()]

    return Case(call, parts)


def bnns_filter() -> Case:
    o = Options(T=70, S=90, key_mask=True, attention="float 3", attention_biases=True, dropout=0.3)
    problem = Problem.make(np.random.default_rng(3), o)
    slots, grads = problem.slots.values(), problem.grads.values()

    def prepare() -> None:
        for slot in (*slots, *grads):
            slot.buffer[...] = slot.before

    def call() -> Any:
        problem.filter = None
        problem.create()
        problem.filter.__enter__()
        problem.forward_with_cache()
        problem.backward(cached=True)
        return [slot.buffer for slot in (*slots, *grads)]

    return Case(
        call, [slot.buffer for slot in slots if slot is not problem.slots["output"]], prepare
    )


def bnns_calls() -> Case:
    """Backward without a cache, of arrays that are copied: nothing is written by one that fails."""
    o = Options(T=70, S=90, gaps=True, misaligned=True, accumulate=True)
    problem = Problem.make(np.random.default_rng(4), o)
    problem.create()
    grads = [slot.buffer for slot in problem.grads.values()]

    def prepare() -> None:
        for slot in problem.grads.values():
            slot.buffer[...] = slot.before

    def call() -> Any:
        size = c_size_t()
        asked = problem.backward_arguments(workspace_size=size)
        problem.backward(cached=False)
        return [*grads, np.array([len(asked)])]

    return Case(call, [*grads, *(slot.buffer for slot in problem.slots.values())], prepare)
