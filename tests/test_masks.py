"""What masks mean: rows without keys, extreme values, NaN behind masks, merging."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from cases import Call, Construction, layer_step, make_call, make_layer, oracle_step
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, tolerance

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = ("float32", "float64")


def check(
    how: Construction,
    call: Call,
    rng: np.random.Generator,
    note: object = "",
    *,
    inputs_only: bool = False,
) -> None:
    """A step equals the oracle's, what is not finite included."""
    layer = make_layer(how, rng)
    actual, expected = layer_step(layer, call), oracle_step(layer.state_dict(), how, call)
    forward, gradient = tolerance(FORWARD, how.dtype), tolerance(GRADIENT, how.dtype)
    assert_close(actual.out, expected.out, forward, f"out {note}")
    if expected.weights is not None:
        assert_close(actual.weights, expected.weights, forward, f"weights {note}")
    names = ("query", "key", "value") if inputs_only else tuple(expected.grads)
    grads = [{name: step.grads[name] for name in names} for step in (actual, expected)]
    assert_all_close(*grads, gradient, note, sizes=expected.sizes)


def hide_row(kind: str, length: int, s: int, row: int, dtype: str) -> dict[str, Any]:
    """Options under which query `row` of every batch entry sees nothing."""
    hides = np.zeros((length, s), bool)
    hides[row] = True
    added = np.where(hides, -np.inf, 0).astype(dtype)
    first = np.zeros((length, s), bool)
    first[row, : s // 2] = True
    rest = np.tile(np.arange(s) >= s // 2, (2, 1))
    return {
        "bool": {"attn_mask": hides},
        "float": {"attn_mask": added},
        "3-D": {"attn_mask": np.tile(added, (6, 1, 1))},
        "with padding": {"attn_mask": first, "key_padding_mask": rest},
        "with float padding": {
            "attn_mask": first,
            "key_padding_mask": np.where(rest, -np.inf, 0).astype(dtype),
        },
        "causal": {"is_causal": True, "key_padding_mask": np.tile(np.arange(s) <= row, (2, 1))},
    }[kind]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["bool", "float", "3-D", "with padding", "with float padding", "causal"]
)
@pytest.mark.parametrize(("length", "s", "row"), [(5, 7, 2), (70, 90, 66), (1, 33, 0)])
def test_a_row_that_masks_hide_is_zero(
    length: int, s: int, row: int, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(dtype=dtype)
    plain = make_call(how, rng, 2, length, s, weights="per head")
    call = Call(
        plain.query,
        plain.key,
        plain.value,
        plain.d_out,
        plain.options | hide_row(kind, length, s, row, dtype),
        plain.d_weights,
    )
    layer = make_layer(how, rng)
    step = layer_step(layer, call)
    np.testing.assert_array_equal(step.out[:, row], np.tile(layer.out_proj.bias, (2, 1)))
    assert not step.weights[:, :, row].any()
    assert not step.grads["query"][:, row].any()
    check(how, call, rng, kind)


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_hidden_is_the_bias_everywhere(dtype: str, rng: np.random.Generator) -> None:
    how = Construction(dtype=dtype)
    plain = make_call(how, rng, weights="average")
    for hides in (
        {"key_padding_mask": np.ones((2, 7), bool)},
        {"attn_mask": np.ones((5, 7), bool)},
        {"key_padding_mask": np.full((2, 7), -np.inf, dtype)},
    ):
        call = Call(*vars(plain).values())
        call.options.update({"key_padding_mask": None, "attn_mask": None} | hides)
        layer = make_layer(how, rng)
        step = layer_step(layer, call)
        np.testing.assert_array_equal(
            step.out, np.broadcast_to(layer.out_proj.bias, step.out.shape)
        )
        zero = {"query", "key", "value", "in_proj_weight", "in_proj_bias", "out_proj.weight"}
        assert all(not step.grads[name].any() for name in zero)
        assert not step.weights.any()
        assert step.grads["out_proj.bias"].any()


@pytest.mark.parametrize("extra", ["add_bias_kv", "add_zero_attn"])
def test_extra_keys_are_always_visible(extra: str, rng: np.random.Generator) -> None:
    how = Construction(**{extra: True})
    call = make_call(how, rng, weights="average")
    call.options["attn_mask"] = np.ones((5, 7), bool)
    step = layer_step(make_layer(how, rng), call)
    np.testing.assert_allclose(step.weights[..., 7], 1.0, rtol=1e-15)
    assert not step.weights[..., :7].any()
    check(how, call, rng)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["attn_mask", "key_padding_mask", "both"])
@pytest.mark.parametrize(("length", "s"), [(5, 7), (65, 130)])
def test_a_row_of_the_lowest_number_is_uniform(
    length: int, s: int, which: str, dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(dtype=dtype)
    lowest = np.finfo(dtype).min
    call = make_call(how, rng, 2, length, s, weights="per head")
    if which != "key_padding_mask":
        call.options["attn_mask"] = np.full((length, s), lowest, dtype)
    if which != "attn_mask":
        call.options["key_padding_mask"] = np.full((2, s), lowest, dtype)
    step = layer_step(make_layer(how, rng), call)
    np.testing.assert_allclose(step.weights, 1 / s, rtol=tolerance(FORWARD, dtype))
    check(how, call, rng, which)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [-1e4, -1e9, -1e30, "lowest", "half of lowest"])
def test_large_negative_values_hide_beside_others(
    value: float | str, dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(dtype=dtype)
    lowest = float(np.finfo(dtype).min)
    number = {"lowest": lowest, "half of lowest": lowest / 2}.get(str(value), value)
    call = make_call(how, rng, 2, 40, 70, weights="average")
    mask = np.where(rng.random((40, 70)) < 0.5, number, 0).astype(dtype)
    mask[3] = number
    call.options["attn_mask"] = mask
    if value in (-1e4, -1e9):  # such a row loses digits of its scores: the oracle's row is finer
        mask[3] = 0
    check(how, call, rng, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_plus_infinity_makes_the_row_nan(name: str, dtype: str, rng: np.random.Generator) -> None:
    how = Construction(dtype=dtype)
    call = make_call(how, rng, weights="per head")
    mask = np.zeros((5, 7) if name == "attn_mask" else (2, 7), dtype)
    mask[1, 2] = np.inf
    call.options[name] = mask
    out, _ = make_layer(how, rng)(call.query, call.key, call.value, **call.options)
    bad = np.isnan(out).all(-1)
    expected = np.zeros((2, 5), bool)
    expected[(slice(None), 1) if name == "attn_mask" else (1, slice(None))] = True
    np.testing.assert_array_equal(bad, expected)
    assert np.isfinite(out[~bad]).all()
    check(how, call, rng, inputs_only=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype: str, rng: np.random.Generator) -> None:
    how = Construction(dtype=dtype)
    call = make_call(how, rng, 2, 20, 30, weights="average")
    big = Call(
        call.query * 1e3, call.key * 1e3, call.value, call.d_out, call.options, call.d_weights
    )
    step = layer_step(make_layer(how, rng), big)
    np.testing.assert_allclose(step.weights.sum(-1), 1, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in (step.out, *step.grads.values()))


def patterns(length: int, s: int) -> dict[str, np.ndarray]:
    """Masks of structure, True = ignore."""
    i, j = np.arange(length)[:, None], np.arange(s)
    return {
        "causal": j > i,
        "upper": j < i,
        "sliding": np.abs(i - j) > 20,
        "blocks": i // 70 != j // 70,
        "checkerboard": (i + j) % 2 == 1,
        "last key": (j < s - 1) & (i >= 0),
        "first key": (j > 0) & (i >= 0),
        "hole": (j > 60) & (j < 200) & (i > 5),
        "empty rows": (i % 3 == 0) & (j >= 0),
        "one pair": (i != length // 2) | (j != s // 2),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("pattern", patterns(1, 1))
@pytest.mark.parametrize(("length", "s"), [(150, 270), (33, 40)])
def test_patterns(
    length: int, s: int, pattern: str, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(22, 2, dtype=dtype, dropout=0.0)
    hides = patterns(length, s)[pattern]
    mask = hides if kind == "bool" else np.where(hides, -np.inf, 0).astype(dtype)
    for is_causal, padding in itertools.product((False, True), ("none", "bool")):
        call = make_call(how, rng, 2, length, s, is_causal=is_causal, padding=padding)
        call.options["attn_mask"] = mask
        check(how, call, rng, (is_causal, padding))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "s"), [(7, 7), (70, 90), (90, 70), (1, 5)])
def test_causal_is_the_mask_of_the_upper_triangle(
    length: int, s: int, dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(dtype=dtype, add_bias_kv=True, add_zero_attn=True)
    layer = make_layer(how, rng)
    call = make_call(how, rng, 2, length, s, is_causal=True, weights="average")
    explicit = make_call(how, rng, 2, length, s, weights="average")
    explicit.options["attn_mask"] = np.arange(s) > np.arange(length)[:, None]
    given = Call(call.query, call.key, call.value, call.d_out, explicit.options, call.d_weights)
    one, two = layer_step(layer, call), layer_step(layer, given)
    assert_close(one.out, two.out, tolerance(FORWARD, dtype), "out")
    assert_close(one.weights, two.weights, tolerance(FORWARD, dtype), "weights")
    assert_all_close(one.grads, two.grads, tolerance(GRADIENT, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_a_padded_key_is_never_read(
    bad: float, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    how = Construction(dtype=dtype, dropout=0.2)
    layer = make_layer(how, rng)
    call = make_call(how, rng, 2, 40, 90, padding=kind, weights="per head")
    hidden = call.options["key_padding_mask"]
    hidden = hidden if kind == "bool" else np.isneginf(hidden)
    state = layer.rng_state
    clean = layer_step(layer, call)
    for x in (call.key, call.value):
        x[hidden] = bad
    layer.rng_state = state
    step = layer_step(layer, call)
    np.testing.assert_array_equal(step.out, clean.out)
    np.testing.assert_array_equal(step.weights, clean.weights)
    for name, grad in clean.grads.items():
        np.testing.assert_array_equal(step.grads[name], grad, err_msg=name)
    for name in ("key", "value"):
        assert not step.grads[name][hidden].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["query", "key", "value", "d_out"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "pattern", ["none", "causal", "sliding", "checkerboard", "empty rows", "hole"]
)
@pytest.mark.parametrize(("length", "s", "at"), [(9, 11, 4), (150, 210, 100)])
def test_nan_reaches_exactly_what_depends_on_it(
    length: int,
    s: int,
    at: int,
    pattern: str,
    bad: float,
    place: str,
    dtype: str,
    rng: np.random.Generator,
) -> None:
    how = Construction(16, 2, dtype=dtype)
    call = make_call(how, rng, 2, length, s, weights="average")
    if pattern != "none":
        call.options["attn_mask"] = patterns(length, s)[pattern]
    getattr(call, place)[1, at] = bad
    for mask_kind in ("bool", "float"):
        if pattern != "none" and mask_kind == "float":
            hides = call.options["attn_mask"]
            call.options["attn_mask"] = np.where(hides, -np.inf, 0).astype(dtype)
        check(how, call, rng, (place, mask_kind), inputs_only=True)
    layer = make_layer(how, rng)
    out, _ = layer(call.query, call.key, call.value, **call.options)
    assert np.isfinite(out[0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_under_a_causal_flag_stays_behind(dtype: str, rng: np.random.Generator) -> None:
    how = Construction(16, 2, dtype=dtype)
    call = make_call(how, rng, 1, 200, 200, is_causal=True)
    call.key[0, 130] = np.nan
    call.value[0, 150] = np.nan
    step = layer_step(make_layer(how, rng), call)
    np.testing.assert_array_equal(np.isnan(step.out[0]).any(-1), np.arange(200) >= 130)
    check(how, call, rng, inputs_only=True)


def test_merge_masks_of_nothing_and_of_padding(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    query, padding = rng.standard_normal((2, 7, 12)), rng.random((2, 7)) < 0.5
    assert layer.merge_masks(None, None, query) == (None, None)
    merged, kind = layer.merge_masks(None, padding, query)
    np.testing.assert_array_equal(merged, padding)
    assert kind == 1


@pytest.mark.parametrize("padding", ["none", "bool", "float"])
@pytest.mark.parametrize("mask", ["bool 2-D", "float 2-D", "bool 3-D", "float 3-D"])
def test_a_merged_mask_says_the_same_as_its_parts(
    mask: str, padding: str, rng: np.random.Generator
) -> None:
    how = Construction()
    layer = make_layer(how, rng)
    call = make_call(how, rng, 2, 7, 7, mask=mask, padding=padding, weights="average")
    names = ("attn_mask", "key_padding_mask")
    merged, kind = layer.merge_masks(*(call.options[name] for name in names), call.query)
    assert kind == 2
    assert merged.shape == (2, 3, 7, 7)
    out, weights = layer(call.query, call.key, call.value, **call.options)
    options = call.options | {"attn_mask": merged, "key_padding_mask": None}
    again, same = layer(call.query, call.key, call.value, **options)
    assert_close(again, out, tolerance(FORWARD, "float64"), "out")
    assert_close(same, weights, tolerance(FORWARD, "float64"), "weights")
