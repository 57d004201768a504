"""Gradients of the layer: float64 against central differences, float32 against float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cases import LAYOUTS, MASKS, PADDING, WEIGHTS, Construction, layer_step, make_call, make_layer
from differences import central_difference
from tolerance import CENTRAL_DIFFERENCES, GRADIENT, assert_all_close, assert_close, tolerance

pytestmark = pytest.mark.usefixtures("isa")

EXTRAS = {
    "plain": {},
    "no bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero row": {"add_zero_attn": True},
    "both extras": {"add_bias_kv": True, "add_zero_attn": True},
    "kdim, vdim": {"kdim": 3, "vdim": 5},
}


def check(how: Construction, rng: np.random.Generator, **options: object) -> None:
    """Every gradient of one step equals the central difference of the loss."""
    layer = make_layer(how, rng)
    call = make_call(how, rng, 2, 3, 4, **options)
    state = layer.rng_state
    grads = layer_step(layer, call).grads
    variables = {name: getattr(call, name) for name in ("query", "key", "value")}
    variables |= layer.parameters()
    variables |= {name: call.options[name] for name in grads if name in call.options}

    def loss() -> float:
        layer.rng_state = state
        out, weights = layer(call.query, call.key, call.value, **call.options)
        total = float((out * call.d_out).sum())
        return total if weights is None else total + float((weights * call.d_weights).sum())

    assert set(grads) == set(variables)
    largest = max(float(np.abs(grad).max()) for grad in grads.values())
    for name, variable in variables.items():
        numeric = central_difference(loss, variable)
        note = f"d_{name} {options}"
        assert_close(grads[name], numeric, CENTRAL_DIFFERENCES, note, scale=1e-3 * largest)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("extras", EXTRAS)
def test_parameters(extras: str, weights: str, dropout: float, rng: np.random.Generator) -> None:
    check(Construction(4, 2, dropout=dropout, **EXTRAS[extras]), rng, weights=weights)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_masks(is_causal: bool, mask: str, padding: str, rng: np.random.Generator) -> None:
    how = Construction(4, 2, dropout=0.3, add_bias_kv=True)
    check(how, rng, mask=mask, padding=padding, is_causal=is_causal, weights="average")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, rng: np.random.Generator) -> None:
    check(Construction(4, 2, layout=layout), rng, mask="float 3-D", padding="float")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("length", "s"), [(7, 9), (70, 65), (129, 260)])
def test_float32_agrees_with_float64(
    length: int, s: int, is_causal: bool, weights: str, rng: np.random.Generator
) -> None:
    how = Construction(24, 3, dropout=0.2, add_bias_kv=True, add_zero_attn=True, dtype="float32")
    layer = make_layer(how, rng)
    call = make_call(
        how,
        rng,
        2,
        length,
        s,
        mask="float 2-D",
        padding="float",
        is_causal=is_causal,
        weights=weights,
    )
    exact = make_layer(dataclasses.replace(how, dtype="float64"), rng)
    exact.load_state_dict({name: x.astype(np.float64) for name, x in layer.state_dict().items()})
    exact.rng_state = layer.rng_state
    wide = {
        name: x.astype(np.float64) if isinstance(x, np.ndarray) else x
        for name, x in (vars(call) | call.options).items()
        if name != "options"
    }
    wide_call = dataclasses.replace(
        call,
        options={name: wide[name] for name in call.options},
        **{name: wide[name] for name in vars(call) if name != "options"},
    )
    expected = layer_step(exact, wide_call).grads
    assert_all_close(layer_step(layer, call).grads, expected, tolerance(GRADIENT, "float32"))


def test_backward_is_linear_in_d_out(rng: np.random.Generator) -> None:
    how = Construction(dropout=0.2)
    layer, call = make_layer(how, rng), make_call(how, rng)
    layer(call.query, call.key, call.value)
    cache = layer.cache
    first = layer.backward(call.d_out, cache=cache)
    twice = layer.backward(2 * call.d_out, cache=cache)
    for a, b in zip(first, twice, strict=True):
        np.testing.assert_array_equal(2 * a, b)


def test_parameter_gradients_accumulate(rng: np.random.Generator) -> None:
    how = Construction(add_bias_kv=True)
    layer, call = make_layer(how, rng), make_call(how, rng)
    once = layer_step(layer, call).grads
    layer(call.query, call.key, call.value, **call.options)
    layer.backward(call.d_out)
    for name, grad in layer.grads.items():
        assert_close(grad, 2 * once[name], tolerance(GRADIENT, "float64"), name)
    layer.zero_grad()
    assert all(not grad.any() for grad in layer.grads.values())


def test_a_cache_can_be_used_again(rng: np.random.Generator) -> None:
    how = Construction(dropout=0.2)
    layer, one, two = make_layer(how, rng), make_call(how, rng), make_call(how, rng)
    layer(one.query, one.key, one.value)
    cache = layer.cache
    layer(two.query, two.key, two.value)
    first = layer.backward(one.d_out, cache=cache)
    second = layer.backward(one.d_out, cache=cache)
    layer.backward(two.d_out)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out_writes_into_the_callers_arrays(dtype: str, rng: np.random.Generator) -> None:
    how = Construction(dtype=dtype)
    layer, call = make_layer(how, rng), make_call(how, rng)
    layer(call.query, call.key, call.value)
    cache = layer.cache
    expected = layer.backward(call.d_out, cache=cache)
    out = tuple(np.full(x.shape[::-1], np.nan, dtype).T for x in expected)
    given = layer.backward(call.d_out, cache=cache, out=out)
    for a, b, c in zip(given, out, expected, strict=True):
        assert a is b
        np.testing.assert_array_equal(b, c)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("same", [(0, 0, 0), (0, 1, 1), (0, 1, 0), (0, 0, 2)])
def test_an_array_given_twice_receives_the_sum(
    same: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(dtype=dtype)
    layer, call = make_layer(how, rng), make_call(how, rng, 2, 9, 9)
    layer(call.query, call.key, call.value)
    cache = layer.cache
    single = layer.backward(call.d_out, cache=cache)
    arrays = [np.full(call.query.shape, np.nan, dtype) for _ in range(3)]
    layer.backward(call.d_out, cache=cache, out=tuple(arrays[i] for i in same))
    for target in set(same):
        expected = sum(single[i].astype(np.float64) for i in range(3) if same[i] == target)
        assert_close(arrays[target], expected, tolerance(GRADIENT, dtype), str(same))
