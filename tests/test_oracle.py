"""The layer against the oracle: the full product of options, then awkward sizes and memory."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import (
    LAYOUTS,
    MASKS,
    PADDING,
    WEIGHTS,
    Call,
    Construction,
    layer_step,
    make_call,
    make_layer,
    oracle_step,
)
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, tolerance

DTYPES = ("float32", "float64")
# Tests without it draw or go through so many cases that the best set has to do; on the others a
# part of these cases, or test_kernel_sets.py's random calls, stand for them.
EACH_SET = pytest.mark.usefixtures("isa")


def check(how: Construction, call: Call, rng: np.random.Generator, note: object = "") -> None:
    """One step of a new layer equals that of the oracle."""
    layer = make_layer(how, rng)
    state = layer.rng_state
    actual = layer_step(layer, call)
    expected = oracle_step(layer.state_dict(), how, call, state)
    forward, gradient = tolerance(FORWARD, how.dtype), tolerance(GRADIENT, how.dtype)
    assert actual.out.dtype == np.dtype(how.dtype)
    assert_close(actual.out, expected.out, forward, f"out {note}")
    if expected.weights is None:
        assert actual.weights is None
    else:
        assert_close(actual.weights, expected.weights, forward, f"weights {note}")
    assert_all_close(actual.grads, expected.grads, gradient, note, sizes=expected.sizes)


def check_combinations(how: Construction, rng: np.random.Generator, every: int = 1) -> None:
    """Steps with each combination of the options of a call and dropout, or one in `every`."""
    combinations = itertools.product((0.0, 0.3), MASKS, PADDING, (False, True), WEIGHTS)
    for dropout, mask, padding, causal, weights in itertools.islice(combinations, 0, None, every):
        case = dataclasses.replace(how, dropout=dropout)
        call = make_call(case, rng, mask=mask, padding=padding, is_causal=causal, weights=weights)
        check(case, call, rng, (dropout, mask, padding, causal, weights))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [(None, None), (5, 9)], ids=["packed", "kdim, vdim"])
@pytest.mark.parametrize("zero", [False, True], ids=["", "add_zero_attn"])
@pytest.mark.parametrize("bias_kv", [False, True], ids=["", "add_bias_kv"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_every_combination_of_options(
    bias: bool,
    bias_kv: bool,
    zero: bool,
    dims: tuple[int | None, int | None],
    layout: str,
    dtype: str,
    rng: np.random.Generator,
) -> None:
    how = Construction(
        bias=bias,
        add_bias_kv=bias_kv,
        add_zero_attn=zero,
        kdim=dims[0],
        vdim=dims[1],
        layout=layout,
        dtype=dtype,
    )
    check_combinations(how, rng)


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(None, None), (5, 9)], ids=["packed", "kdim, vdim"])
@pytest.mark.parametrize("extras", [False, True], ids=["", "add_bias_kv, add_zero_attn"])
def test_some_combinations_of_options(
    extras: bool, dims: tuple[int | None, int | None], dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(
        add_bias_kv=extras, add_zero_attn=extras, kdim=dims[0], vdim=dims[1], dtype=dtype
    )
    check_combinations(how, rng, every=5)


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "head_dim",
    [
        1,
        2,
        3,
        5,
        7,
        8,
        11,
        15,
        16,
        17,
        23,
        31,
        33,
        48,
        63,
        64,
        65,
        80,
        100,
        127,
        129,
        200,
        257,
        300,
    ],
)
def test_head_sizes(head_dim: int, dtype: str, rng: np.random.Generator) -> None:
    heads = 1 + head_dim % 3
    how = Construction(head_dim * heads, heads, dropout=0.2, dtype=dtype)
    check(how, make_call(how, rng, 2, 19, 37, padding="bool", weights="average"), rng)
    check(how, make_call(how, rng, 1, 33, 18, is_causal=True), rng)


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("s", [0, 1, 2, 17])
@pytest.mark.parametrize("length", [0, 1, 3, 16])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_small_and_empty(n: int, length: int, s: int, dtype: str, rng: np.random.Generator) -> None:
    for extras, padding, mask in itertools.product((False, True), PADDING, MASKS):
        how = Construction(
            10, 2, add_bias_kv=extras, add_zero_attn=extras, dropout=0.5, dtype=dtype
        )
        call = make_call(how, rng, n, length, s, mask=mask, padding=padding, weights="per head")
        check(how, call, rng, (extras, padding, mask))


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "s"),
    [
        (1, 300),
        (300, 1),
        (63, 65),
        (64, 64),
        (65, 127),
        (128, 129),
        (129, 255),
        (257, 256),
        (513, 259),
    ],
)
@pytest.mark.parametrize("mask", ["none", "bool 2-D", "float 4-D", "causal"])
def test_lengths_that_cross_tiles(
    length: int, s: int, mask: str, dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(26, 2, dropout=0.1, dtype=dtype, add_bias_kv=s % 2 == 0)
    causal = mask == "causal"
    kind = "none" if causal else mask
    padding = "bool" if s % 2 else "none"
    call = make_call(
        how, rng, 2, length, s, mask=kind, is_causal=causal, padding=padding, weights="average"
    )
    check(how, call, rng)


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_rows_of_few_heads(layout: str, dtype: str, rng: np.random.Generator) -> None:
    how = Construction(64, 1, layout=layout, dtype=dtype)
    check(how, make_call(how, rng, 1, 70, 1100), rng)
    check(how, make_call(how, rng, 1, 1100, 70, padding="bool"), rng)


def spread(x: np.ndarray) -> np.ndarray:
    """The same values with gaps between them."""
    wide = np.full(tuple(2 * size for size in x.shape), np.nan, x.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def reverse(x: np.ndarray) -> np.ndarray:
    """The same values behind negative strides."""
    flip = tuple(slice(None, None, -1) for _ in x.shape)
    return np.ascontiguousarray(x[flip])[flip]


def transpose(x: np.ndarray) -> np.ndarray:
    """The same values, first axis fastest."""
    return np.asfortranarray(x)


def freeze(x: np.ndarray) -> np.ndarray:
    """The same values, read-only."""
    x = x.copy()
    x.flags.writeable = False
    return x


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory", [spread, reverse, transpose, freeze])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_any_memory_layout(
    memory: object, layout: str, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    assert callable(memory)
    how = Construction(layout=layout, dtype=dtype)
    plain = make_call(how, rng, mask=f"{kind} 2-D", padding=kind, weights="per head")
    options = {
        name: memory(x) if isinstance(x, np.ndarray) else x for name, x in plain.options.items()
    }
    tensors = (plain.query, plain.key, plain.value, plain.d_out)
    call = Call(*(memory(x) for x in tensors), options, memory(plain.d_weights))
    check(how, call, rng)


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_inputs(dtype: str, rng: np.random.Generator) -> None:
    how = Construction(dtype=dtype)
    plain = make_call(how, rng, n=1)
    wide = [np.broadcast_to(x, (3, *x.shape[1:])) for x in (plain.query, plain.key, plain.value)]
    d_out = np.broadcast_to(plain.d_out[:, :1], plain.query.shape)
    call = Call(*wide, np.broadcast_to(d_out, wide[0].shape), plain.options)
    check(how, call, rng)


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("same", ["query is key is value", "key is value", "query is key"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_array_in_several_places(
    same: str, layout: str, dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(layout=layout, dtype=dtype, dropout=0.2)
    plain = make_call(how, rng, 2, 9, 9, mask="float 2-D", weights="average")
    key = plain.query if "query" in same else plain.key
    value = key if "value" in same else plain.value
    check(how, Call(plain.query, key, value, plain.d_out, plain.options, plain.d_weights), rng)


@given(data=st.data())
def test_random_shapes_and_masks(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    heads = data.draw(st.integers(1, 5), "heads")
    how = Construction(
        embed_dim=heads * data.draw(st.integers(1, 40), "head_dim"),
        num_heads=heads,
        bias=data.draw(st.booleans(), "bias"),
        add_bias_kv=data.draw(st.booleans(), "add_bias_kv"),
        add_zero_attn=data.draw(st.booleans(), "add_zero_attn"),
        kdim=data.draw(st.none() | st.integers(1, 20), "kdim"),
        vdim=data.draw(st.none() | st.integers(1, 20), "vdim"),
        dropout=data.draw(st.sampled_from([0.0, 0.1, 0.9]), "dropout"),
        layout=data.draw(st.sampled_from(LAYOUTS), "layout"),
        dtype=data.draw(st.sampled_from(DTYPES), "dtype"),
    )
    call = make_call(
        how,
        rng,
        data.draw(st.integers(0, 3), "n"),
        data.draw(st.integers(0, 90), "length"),
        data.draw(st.integers(0, 90), "s"),
        mask=data.draw(st.sampled_from(MASKS), "mask"),
        padding=data.draw(st.sampled_from(PADDING), "padding"),
        is_causal=data.draw(st.booleans(), "is_causal"),
        weights=data.draw(st.sampled_from(WEIGHTS), "weights"),
    )
    check(how, call, rng)
