"""What a layer is made with stays; what may change is checked when it is set."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

import multihead as mh
from cases import Construction, layer_step, make_call, make_layer

FIXED = {
    "embed_dim": 24,
    "num_heads": 64,
    "head_dim": 7,
    "kdim": 3,
    "vdim": 3,
    "bias": False,
    "add_bias_kv": True,
    "add_zero_attn": True,
}


@pytest.mark.parametrize("name", FIXED)
def test_what_parameters_follow_from_is_read_only(name: str, rng: np.random.Generator) -> None:
    how = Construction()
    layer, call = make_layer(how, rng), make_call(how, rng, weights="per head")
    expected = layer_step(layer, call)
    before = getattr(layer, name)
    for assign in (setattr, object.__setattr__):
        with pytest.raises(AttributeError, match=f"^{name}: cannot be changed"):
            assign(layer, name, FIXED[name])
    vars(layer)[name] = FIXED[name]
    assert getattr(layer, name) == before
    np.testing.assert_array_equal(layer_step(layer, call).out, expected.out)
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(layer_step(again, call).out, expected.out)


@pytest.mark.parametrize("value", [0, 64, 5, -1])
def test_no_number_of_heads_reaches_the_engine_after_construction(value: int) -> None:
    layer = mh.MultiheadAttention(16, 2, seed=0)
    x = np.ones((4, 1, 16), np.float32)
    with pytest.raises(AttributeError, match="num_heads"):
        layer.num_heads = value  # type: ignore[misc]
    layer(x, x, x, average_attn_weights=False)


@pytest.mark.parametrize("name", ["training", "batch_first"])
@pytest.mark.parametrize("value", [np.True_, np.array(True), 1, True])
def test_a_flag_takes_what_is_like_a_bool(name: str, value: Any) -> None:
    layer = mh.MultiheadAttention(16, 2, seed=0).eval()
    setattr(layer, name, value)
    assert getattr(layer, name) is True
    x = np.ones((1, 4, 16), np.float32)
    layer(x, x, x)
    assert (layer.cache is not None) == (name == "training")


@pytest.mark.parametrize("name", ["training", "batch_first"])
@pytest.mark.parametrize("value", ["no", None, 2, 1.0, np.array([True]), "False"])
def test_a_flag_refuses_the_rest(name: str, value: Any) -> None:
    layer = mh.MultiheadAttention(16, 2, seed=0)
    before = getattr(layer, name)
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected True or False"):
        setattr(layer, name, value)
    assert getattr(layer, name) is before


def test_batch_first_of_a_later_call_may_differ() -> None:
    rng = np.random.default_rng(0)
    layer = mh.MultiheadAttention(16, 2, seed=0).eval()
    x = rng.standard_normal((3, 5, 16)).astype(np.float32)
    first, _ = layer(x, x, x)
    layer.batch_first = True
    y = x.swapaxes(0, 1)
    np.testing.assert_array_equal(layer(y, y, y)[0].swapaxes(0, 1), first)


@pytest.mark.parametrize("name", ["bias", "add_bias_kv", "add_zero_attn", "batch_first"])
def test_the_constructor_refuses_words(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected True or False, got 'no'"):
        mh.MultiheadAttention(16, 2, **{name: "no"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["need_weights", "average_attn_weights", "is_causal"])
@pytest.mark.parametrize("value", ["no", None, 2, np.zeros(2)])
def test_a_call_refuses_words(name: str, value: Any) -> None:
    layer = mh.MultiheadAttention(16, 2, seed=0)
    x = np.ones((4, 1, 16), np.float32)
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected True or False"):
        layer(x, x, x, **{name: value})
    assert layer.cache is None


def test_a_call_takes_numpy_bools() -> None:
    layer = mh.MultiheadAttention(16, 2, seed=0).eval()
    x = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    expected, _ = layer(x, x, x, is_causal=True, need_weights=False)
    out, weights = layer(x, x, x, is_causal=np.True_, need_weights=np.False_)
    assert weights is None
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("value", ["0.1", True, b"0"])
def test_dropout_refuses_what_is_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^dropout: expected a number from 0 to 1"):
        mh.MultiheadAttention(16, 2, dropout=value)
    layer = mh.MultiheadAttention(16, 2, dropout=0.5)
    with pytest.raises(TypeError, match=r"^dropout"):
        layer.dropout = value
    assert layer.dropout == 0.5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_array_reshaped_in_place_changes_no_result(dtype: str) -> None:
    layer = mh.MultiheadAttention(16, 2, dtype=dtype, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 16)).astype(dtype)

    def step() -> list[np.ndarray]:
        layer.zero_grad()
        out, _ = layer(x, x, x)
        return [out, *layer.backward(out), layer.grads["out_proj.bias"].flatten()]

    expected = step()
    for arrays in (layer.parameters(), layer.grads):
        for array in arrays.values():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                array.shape = (array.size, 1)
    for a, b in zip(step(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    state = layer.state_dict()
    assert state["out_proj.weight"].shape == (16, 16)
    layer.load_state_dict(state)
