"""In the place of `jax.nn.dot_product_attention`: its parameters, as close to float64 as it is."""

from __future__ import annotations

import inspect
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tolerance import FORWARD, GRADIENT, assert_close, tolerance

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from multihead.jax import dot_product_attention  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "window": {"local_window_size": 5},
    "two-sided window": {"local_window_size": (7, 2), "is_causal": True},
    "key lengths": {"key_value_seq_lengths": np.array([20, 31, 7], np.int32)},
    "lengths": {
        "query_seq_lengths": np.array([9, 24, 13], np.int32),
        "key_value_seq_lengths": np.array([20, 31, 7], np.int32),
    },
    "lengths past the end": {"key_value_seq_lengths": np.array([99, 31, 7], np.int32)},
}
SHAPES = {"bias": (1, 4, 24, 31), "mask": (3, 1, 24, 31)}


def arrays(rng: np.random.Generator, of_keys: int) -> dict[str, Any]:
    n, length, s, heads, width = 3, 24, 31, 4, 8
    query = rng.standard_normal((n, length, heads, width))
    key, value = rng.standard_normal((2, n, s, of_keys, width))
    return {"query": query, "key": key, "value": value}


@pytest.mark.parametrize("of_keys", [4, 2, 1])
@pytest.mark.parametrize("extra", [(), ("bias",), ("mask",), ("bias", "mask")], ids="+".join)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case: str, extra: tuple[str, ...], of_keys: int) -> None:
    rng = np.random.default_rng([51, of_keys, len(extra)])
    smooth, rest = arrays(rng, of_keys), dict(CASES[case])
    if "bias" in extra:
        smooth["bias"] = rng.standard_normal(SHAPES["bias"])
    if "mask" in extra:  # every query sees a key: there the two differ, as is documented
        mask = rng.random(SHAPES["mask"]) < 0.7
        rest["mask"] = mask | np.eye(24, 31, dtype=bool) | (np.arange(31) == 0)
    d_out = rng.standard_normal((3, 24, 4, 8))

    def both(function: Any, dtype: Any) -> dict[str, Any]:
        given = {name: x.astype(dtype) for name, x in smooth.items()}

        @jax.jit
        def of_all(given: dict[str, Any], cotangent: Any) -> dict[str, Any]:
            out, transposed = jax.vjp(lambda x: function(**x, **rest), given)
            return {"out": out, **transposed(cotangent)[0]}

        found: dict[str, Any] = of_all(given, jnp.asarray(d_out, dtype))
        return found

    with jax.enable_x64(True):
        exact = both(jax.nn.dot_product_attention, np.float64)
        exact = {name: np.asarray(x) for name, x in exact.items()}
    found = both(dot_product_attention, np.float32)
    assert found.keys() == exact.keys()
    for name, x in exact.items():  # its softmax is of float32, whatever it is given
        kind = FORWARD if name == "out" else GRADIENT
        assert_close(found[name], x, tolerance(kind, np.float32), f"{name} {case}")


@pytest.mark.parametrize("biased", [False, True])
def test_traced_scales_have_gradients(biased: bool, rng: np.random.Generator) -> None:
    """Under jit, and in a step of gradients outside of it, too."""
    given = arrays(rng, 2) | {"scale": rng.uniform(0.2, 0.5)}
    if biased:
        given["bias"] = rng.standard_normal(SHAPES["bias"])
    weights = rng.standard_normal((3, 24, 4, 8))

    def both(function: Any, dtype: Any) -> Any:
        def loss(given: dict[str, Any]) -> tuple[Any, Any]:
            out = function(**given, is_causal=True)
            return (out * weights.astype(dtype)).sum(), out

        return jax.grad(loss, has_aux=True)

    with jax.enable_x64(True):
        exact = both(jax.nn.dot_product_attention, np.float64)(jax.tree.map(jnp.asarray, given))
        exact = jax.tree.map(np.asarray, exact)
    single = {name: jnp.asarray(x, jnp.float32) for name, x in given.items()}
    step = both(dot_product_attention, np.float32)
    for found in (step(single), jax.jit(step)(single)):
        assert found[0].keys() == exact[0].keys()
        assert_close(found[1], exact[1], tolerance(FORWARD, np.float32), "out")
        for name, x in exact[0].items():
            assert_close(found[0][name], x, tolerance(GRADIENT, np.float32), name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scales_of_half_precision_round_the_query_once(
    dtype: str, rng: np.random.Generator
) -> None:
    given = {name: x.astype(dtype) for name, x in arrays(rng, 2).items()}
    scale = np.float32(0.3)
    once = (given["query"].astype(np.float32) * scale).astype(dtype)
    found = jax.jit(dot_product_attention)(**given, scale=scale)
    expected = dot_product_attention(**given | {"query": once}, scale=1.0)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(dtype: Any) -> None:
    given = {k: x.astype(dtype) for k, x in arrays(np.random.default_rng(52), 2).items()}
    exact = {name: x.astype(np.float32) for name, x in given.items()}
    found = dot_product_attention(**given, is_causal=True)
    expected = jax.nn.dot_product_attention(**exact, is_causal=True)
    assert found.dtype == dtype
    assert_close(found, expected, tolerance(FORWARD, dtype))


def test_residual() -> None:
    given = {k: x.astype(np.float32) for k, x in arrays(np.random.default_rng(53), 2).items()}
    ours, theirs = (
        f(**given, is_causal=True, return_residual=True)
        for f in (dot_product_attention, jax.nn.dot_product_attention)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, tolerance(FORWARD, np.float32))
    gradient = jax.grad(
        lambda q: dot_product_attention(q, given["key"], given["value"], return_residual=True)[
            1
        ].sum()
    )(given["query"])
    assert (gradient == 0).all()


def test_every_parameter_of_theirs_has_its_place_and_default() -> None:
    theirs = inspect.signature(jax.nn.dot_product_attention).parameters
    ours = inspect.signature(dot_product_attention).parameters
    positional = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [p.name for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name


def test_queries_past_their_sequence_have_no_gradient() -> None:
    given = {k: x.astype(np.float32) for k, x in arrays(np.random.default_rng(54), 4).items()}
    lengths = np.array([3, 24, 0], np.int32)

    def loss(q: Any) -> Any:
        rest = given["key"], given["value"]
        return (dot_product_attention(q, *rest, query_seq_lengths=lengths) ** 2).sum()

    gradient = jax.grad(loss)(given["query"])
    for n, length in enumerate(lengths):
        assert (gradient[n, length:] == 0).all()
        assert length == 0 or float(abs(gradient[n, :length]).min(initial=1)) > 0
