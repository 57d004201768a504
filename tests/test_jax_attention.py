"""`multihead.jax.dot_product_attention` has NumPy's bits: outputs and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from score_options import drawn_options, oracle
from tolerance import FORWARD, GRADIENT, assert_close, tolerance

jax = pytest.importorskip("jax")

from jax_calls import KEY, drawn, heads_first, in_jax, in_numpy, of_jax  # noqa: E402
from multihead import functional  # noqa: E402
from multihead.jax import dot_product_attention  # noqa: E402

OPTIONS = "causal window offset lengths softcap alibi sinks mask dropout".split()
SIZES = (3, 37, 71, 4, 2, 16, 8)  # N, L, S, H, Hk, D, Dv


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any], note: object) -> None:
    assert found.keys() == expected.keys(), note
    for name, x in expected.items():
        if name == "lse":  # of two libraries' logarithms
            assert_close(found[name], x, tolerance(FORWARD, np.float32), f"{name} {note}")
            continue
        ours = np.asarray(found[name], np.float64)
        np.testing.assert_array_equal(ours, np.asarray(x, np.float64), f"{name} {note}")


def cotangents(rng: np.random.Generator, sizes: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    n, length, _, heads, _, _, of_values = sizes
    d_out = rng.standard_normal((n, length, heads, of_values)).astype(dtype)
    return d_out, rng.standard_normal((n, heads, length)).astype(np.float32)


@pytest.mark.parametrize("names", [(), *itertools.combinations(OPTIONS, 2)], ids=" ".join)
def test_every_option_with_every_other(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng([21, *map(len, names)])
    n, length, s, heads, *_ = SIZES
    inputs = drawn(rng, SIZES)
    options = drawn_options(rng, (n, heads, length, s), list(names))
    for name in ("alibi_slopes", "sinks", "attn_mask"):
        if name in options and options[name].dtype != bool:
            options[name] = options[name].astype(np.float32)
    given = inputs, options, *cotangents(rng, SIZES, np.float32)
    assert_same_bits(in_jax(*given), in_numpy(*given), options.keys())


@pytest.mark.parametrize("case", range(40))
def test_random_sizes_and_options(case: int) -> None:
    rng = np.random.default_rng([22, case])
    heads = int(rng.integers(1, 5))
    of_keys = int(rng.choice([k for k in range(1, heads + 1) if heads % k == 0]))
    n, length, s = rng.integers(1, 4), rng.integers(1, 140), rng.integers(1, 200)
    width, of_values = rng.integers(1, 40, 2)
    sizes = tuple(map(int, (n, length, s, heads, of_keys, width, of_values)))
    dtype = [np.float32, np.float16, ml_dtypes.bfloat16][case % 3]
    names = [name for name in OPTIONS if rng.random() < 0.4]
    options = drawn_options(rng, (sizes[0], heads, sizes[1], sizes[2]), names)
    for name in ("alibi_slopes", "sinks", "attn_mask"):
        if name in options and options[name].dtype != bool:
            options[name] = options[name].astype(np.float32)
    given = drawn(rng, sizes, dtype), options, *cotangents(rng, sizes, dtype)
    assert_same_bits(in_jax(*given), in_numpy(*given), (sizes, dtype, options))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_without_derivatives_nothing_is_kept(dtype: Any) -> None:
    rng = np.random.default_rng(23)
    inputs = drawn(rng, SIZES, dtype)
    found = jax.jit(lambda *x: dot_product_attention(*x, is_causal=True))(*inputs)
    assert found.dtype == dtype
    heads = map(heads_first, inputs)
    expected = functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    np.testing.assert_array_equal(
        np.asarray(found, np.float64), heads_first(expected).astype(np.float64)
    )


@pytest.mark.parametrize("names", [(), ("causal", "sinks", "mask"), ("dropout", "alibi")])
def test_float64_where_jax_has_it(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(24)
    n, length, s, heads, *_ = SIZES
    inputs = drawn(rng, SIZES, np.float64)
    options = drawn_options(rng, (n, heads, length, s), list(names))
    d_out, d_lse = cotangents(rng, SIZES, np.float64)
    with jax.enable_x64(True):
        found = in_jax(inputs, options, d_out, d_lse.astype(np.float64))
    assert found["out"].dtype == np.float64
    expected = in_numpy(inputs, options, d_out, d_lse.astype(np.float64))
    assert_same_bits(found, expected, names)


@pytest.mark.parametrize("names", [("causal",), ("window", "softcap"), ("alibi", "lengths")])
def test_against_the_oracle(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(25)
    n, length, s, heads, *_ = SIZES
    inputs = drawn(rng, SIZES)
    options = drawn_options(rng, (n, heads, length, s), list(names))
    found = dot_product_attention(*inputs, **of_jax(options))
    expected = oracle(*map(heads_first, inputs), options).out
    assert_close(heads_first(found), expected, tolerance(FORWARD, np.float32))


def test_one_sequence_needs_no_axis() -> None:
    rng = np.random.default_rng(26)
    inputs = drawn(rng, SIZES)
    whole, lse = dot_product_attention(*inputs, return_lse=True)
    one, of_one = dot_product_attention(*(x[1] for x in inputs), return_lse=True)
    np.testing.assert_array_equal(one, whole[1])
    np.testing.assert_array_equal(of_one, lse[1])


def test_a_key_draws_what_its_words_draw_in_numpy() -> None:
    rng = np.random.default_rng(27)
    inputs = drawn(rng, SIZES)
    options = {"dropout_p": 0.25}
    by_words = dot_product_attention(*inputs, **options, dropout_key=KEY)
    key = jax.random.wrap_key_data(KEY)
    np.testing.assert_array_equal(
        dot_product_attention(*inputs, **options, dropout_key=key), by_words
    )
    other = dot_product_attention(*inputs, **options, dropout_key=jax.random.key(1))
    assert float(abs(other - by_words).max()) > 0.1


def test_all_words_of_a_long_key_count() -> None:
    inputs = drawn(np.random.default_rng(30), SIZES)
    words = np.array([5, 7, 1 << 31 | 3, 9], np.uint32)
    key = jax.random.wrap_key_data(words, impl="rbg")
    folded = words[:2] ^ words[2:]
    found, expected = (
        dot_product_attention(*inputs, dropout_p=0.25, dropout_key=k) for k in (key, folded)
    )
    np.testing.assert_array_equal(found, expected)


def test_only_what_is_asked_for_is_computed() -> None:
    """The gradient of a bias has L times S entries: none where nobody wants it."""
    rng = np.random.default_rng(28)
    inputs = drawn(rng, SIZES)
    bias = rng.standard_normal((1, 4, 37, 71)).astype(np.float32)
    d_out, _ = cotangents(rng, SIZES, np.float32)

    def loss(q: Any, b: Any) -> Any:
        return (dot_product_attention(q, *inputs[1:], b) * d_out).sum()

    text = jax.jit(jax.grad(loss)).lower(inputs[0], bias).as_text()
    calls = [line for line in text.splitlines() if "multihead_attention_backward" in line]
    assert len(calls) == 1
    assert "tensor<1x4x37x71xf32>" not in calls[0].rpartition("->")[2]


def test_gradients_against_the_oracle() -> None:
    rng = np.random.default_rng(29)
    inputs = drawn(rng, SIZES)
    d_out, d_lse = cotangents(rng, SIZES, np.float32)
    options = {"is_causal": True, "softcap": 2.0}
    found = in_jax(inputs, options, d_out, d_lse)
    exact = in_numpy(
        tuple(x.astype(np.float64) for x in inputs), options, d_out.astype(np.float64), d_lse
    )
    for name in ("query", "key", "value"):
        assert_close(found[name], exact[name], tolerance(GRADIENT, np.float32), name)
