"""What fuzzing found: values that few callers give are right or refused, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multihead as mh
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

HUGE = 10**400  # no float is as large


@pytest.mark.parametrize("way", ["attention", "layer"])
def test_float16_in_the_other_order_of_bytes(way: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 5, 8)).astype(np.float16)
    swapped = x.astype(x.dtype.newbyteorder())
    results = []
    for given in (x, swapped):
        if way == "layer":
            layer = mh.MultiheadAttention(8, 2, dtype="float16", batch_first=True, seed=0)
            out, weights = layer(given, given, given)
            results.append([out, weights, *layer.backward(given)])
        else:
            out, cache = scaled_dot_product_attention(given, given, given, return_cache=True)
            plain = scaled_dot_product_attention(given, given, given)
            found = scaled_dot_product_attention_backward(given, cache)
            results.append([out, plain, *found])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == np.float16
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: scaled_dot_product_attention(x, x, x, scale=HUGE),
        lambda x: scaled_dot_product_attention(x, x, x, dropout_p=HUGE),
        lambda x: scaled_dot_product_attention(x, x, x, softcap=HUGE),
        lambda x: mh.MultiheadAttention(4, 2, dropout=HUGE),
    ],
)
def test_a_number_too_large_for_a_float_is_named(call: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"^(scale|dropout_p|softcap|dropout): expected a number"):
        call(np.ones((2, 5, 4)))


@pytest.mark.parametrize("axis", ["query", "key"])
def test_more_tokens_than_positions_are_refused_at_once(axis: str) -> None:
    one, many = np.ones((), np.float32), 2**33
    shapes = {"query": (1, 1, 2, 4), "key": (1, 1, 3, 4)}
    shapes[axis] = (1, 1, many, 4)
    width = 4 if axis == "key" else 0  # an output of no bytes
    q, k = (np.broadcast_to(one, shapes[x]) for x in ("query", "key"))
    v = np.broadcast_to(one, (*shapes["key"][:3], width))
    with pytest.raises(ValueError, match=f"{axis}: expected at most"):
        scaled_dot_product_attention(q, k, v)


def test_offsets_whose_differences_wrap_around_are_refused() -> None:
    values = np.ones((5, 2, 4), np.float32)
    with pytest.raises(ValueError, match="offsets: expected a rising run"):
        mh.Ragged(values, [0, 2**63 - 1, -(2**63), -1, 5])


def test_parameters_may_be_exchanged_in_a_state_dict() -> None:
    layer = mh.MultiheadAttention(4, 2, kdim=3, vdim=3, seed=0)
    state, before = layer.parameters(), layer.state_dict()
    names = ("k_proj_weight", "v_proj_weight")
    layer.load_state_dict(state | dict(zip(names, (state[x] for x in names[::-1]), strict=True)))
    for name, other in zip(names, names[::-1], strict=True):
        np.testing.assert_array_equal(layer.state_dict()[name], before[other])


class TestCacheState:
    """`KVCache.load_state_dict` takes what `state_dict` returns, and nothing else."""

    @staticmethod
    def cache(dtype: str = "float64") -> mh.KVCache:
        made = mh.KVCache(1, 1, 4, 3, dtype=dtype)
        made.keys[...], made.values[...] = 1, 2
        made.lengths = 3
        return made

    @pytest.mark.parametrize("name", ["keys", "values"])
    @pytest.mark.parametrize("dtype", ["int64", "O", "complex64", ">f8"])
    def test_rows_of_another_dtype_change_nothing(self, name: str, dtype: str) -> None:
        cache = self.cache()
        state = {x: y + 5 for x, y in cache.state_dict().items()}
        state |= {"rows": np.array([2]), name: state[name].astype(dtype)}
        with pytest.raises(TypeError, match=f"{name}: expected float64"):
            cache.load_state_dict(state)
        assert (cache.keys == 1).all()
        assert (cache.values == 2).all()
        assert cache.lengths.tolist() == [3]

    def test_keys_and_values_may_be_exchanged(self) -> None:
        cache = self.cache()
        state = cache.state_dict() | {"keys": cache.values, "values": cache.keys}
        cache.load_state_dict(state)
        assert (cache.keys == 2).all()
        assert (cache.values == 1).all()

    @pytest.mark.parametrize(
        ("state", "error"), [(5, TypeError), ([], TypeError), ({1: 2, "a": 3}, ValueError)]
    )
    def test_what_is_no_state_is_named(self, state: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^state: expected"):
            self.cache().load_state_dict(state)

    def test_tokens_that_no_window_lets_go_are_refused(self) -> None:
        cache = self.cache()
        state = cache.state_dict() | {"lengths": np.array([2**35])}
        with pytest.raises(ValueError, match=r"lengths: expected \[3\]"):
            cache.load_state_dict(state)
        assert cache.lengths.tolist() == [3]

    def test_bits_of_bfloat16_are_welcome(self) -> None:
        cache = self.cache("bfloat16")
        state = cache.state_dict()
        bits = state | {x: state[x].view(np.uint16) for x in ("keys", "values")}
        self.cache("bfloat16").load_state_dict(bits)
