"""vmap, scan and checkpoint around attention in JAX."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tolerance import GRADIENT, assert_close, tolerance

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from jax_calls import KEY, drawn  # noqa: E402
from multihead.jax import dot_product_attention  # noqa: E402

SIZES = (2, 19, 33, 4, 2, 8, 6)  # N, L, S, H, Hk, D, Dv
MAPPED = ("query", "key", "value", "bias", "sinks", "key_lengths", "alibi_slopes")


def entries(rng: np.random.Generator, mapped: tuple[str, ...], n: int = 2) -> dict[str, Any]:
    """A call's arrays, those that are mapped with three entries."""
    query, key, value = drawn(rng, (n, *SIZES[1:]))
    arrays = {"query": query, "key": key, "value": value}
    arrays["bias"] = rng.standard_normal((1, 4, 19, 33), np.float32)
    arrays["sinks"] = rng.standard_normal(4, np.float32)
    arrays["key_lengths"] = rng.integers(20, 34, n).astype(np.int32)
    arrays["alibi_slopes"] = rng.uniform(0, 0.2, 4).astype(np.float32)
    for name in mapped:
        x = arrays[name]
        moved = [x, x[..., ::-1].copy(), np.roll(x, 1, -1)]
        arrays[name] = np.stack(moved)
    return arrays


def gradients(arrays: dict[str, Any], d_out: Any) -> dict[str, Any]:
    """Gradients of one call, and its output."""
    smooth = {name: x for name, x in arrays.items() if name in MAPPED[:5]}
    rest = {name: x for name, x in arrays.items() if name not in smooth}
    out, transposed = jax.vjp(lambda x: dot_product_attention(**x, **rest), smooth)
    return {"out": out, **transposed(d_out)[0]}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "mapped", [m for k in (1, 2, 7) for m in itertools.combinations(MAPPED, k)], ids=" ".join
)
def test_every_entry_is_a_call(mapped: tuple[str, ...], n: int) -> None:
    rng = np.random.default_rng([41, n, *map(len, mapped)])
    arrays = entries(rng, mapped, n)
    d_out = rng.standard_normal((3, n, 19, 4, 6), np.float32)
    axes = {name: 0 if name in mapped else None for name in arrays}
    found = jax.jit(jax.vmap(gradients, (axes, 0)))(arrays, d_out)
    for i in range(3):
        one = {name: x[i] if name in mapped else x for name, x in arrays.items()}
        for name, x in gradients(one, d_out[i]).items():
            assert_close(found[name][i], x, 1e-6, name)


@pytest.mark.parametrize("mapped", [("query",), ("query", "key", "value"), MAPPED[:5]])
def test_gradients_of_what_is_not_mapped_are_summed(mapped: tuple[str, ...]) -> None:
    rng = np.random.default_rng(42)
    arrays = entries(rng, mapped)
    axes = {name: 0 if name in mapped else None for name in arrays}
    smooth = {name: arrays.pop(name) for name in MAPPED[:5]}
    weights = rng.standard_normal((2, 19, 4, 6), np.float32)

    def loss(given: dict[str, Any], call: Any) -> Any:
        return (call(given) * weights).sum()

    def one(given: dict[str, Any]) -> Any:
        return dot_product_attention(**given, **arrays)

    def each(given: dict[str, Any]) -> Any:
        return jnp.stack(
            [one({k: x[i] if k in mapped else x for k, x in given.items()}) for i in range(3)]
        )

    together = jax.vmap(one, ({name: axes[name] for name in smooth},))
    found = jax.jit(jax.grad(loss), static_argnums=1)(smooth, together)
    expected = jax.grad(loss)(smooth, each)
    for name, x in expected.items():
        assert_close(found[name], x, tolerance(GRADIENT, np.float32), name)


def test_vmap_of_whole_batches_is_one_call_of_the_engine() -> None:
    rng = np.random.default_rng(43)
    arrays = entries(rng, ("query", "key", "value"))
    three = arrays["query"], arrays["key"], arrays["value"]
    both = jax.vmap(jax.vmap(dot_product_attention, in_axes=1, out_axes=1))
    found = jax.jit(both)(*(x[:, None].repeat(2, 1).swapaxes(1, 2) for x in three))
    folded = dot_product_attention(*(x.reshape(-1, *x.shape[2:]) for x in three))
    for i in range(2):
        np.testing.assert_array_equal(found[:, :, i].reshape(folded.shape), folded)


@pytest.mark.parametrize("of_keys", [0, None])
def test_dropout_draws_by_the_key_of_an_entry(of_keys: int | None) -> None:
    rng = np.random.default_rng(44)
    arrays = entries(rng, ("query",))
    keys = np.stack([KEY, KEY + 1, KEY + 2]) if of_keys == 0 else KEY

    def one(q: Any, key: Any) -> Any:
        return dot_product_attention(
            q, arrays["key"], arrays["value"], dropout_p=0.4, dropout_key=key
        )

    found = jax.vmap(one, (0, of_keys))(arrays["query"], keys)
    for i in range(3):
        key = keys[i] if of_keys == 0 else keys
        np.testing.assert_array_equal(found[i], one(arrays["query"][i], key))


@pytest.mark.parametrize("remade", [False, True])
def test_scan_and_checkpoint(remade: bool) -> None:
    rng = np.random.default_rng(45)
    query, key, _ = drawn(rng, (2, 21, 21, 4, 4, 8, 8))
    scales = np.array([1.0, 0.5, 2.0], np.float32)

    def step(x: Any, scale: Any) -> tuple[Any, Any]:
        out = dot_product_attention(x * scale, key, x, is_causal=True)
        return out, out.mean()

    body = jax.checkpoint(step) if remade else step

    def scanned(x: Any) -> Any:
        last, means = jax.lax.scan(body, x, scales)
        return (last**2).sum() + means.sum()

    def unrolled(x: Any) -> Any:
        means = []
        for scale in scales:
            x, mean = step(x, scale)
            means.append(mean)
        return (x**2).sum() + sum(means)

    bound = tolerance(GRADIENT, np.float32)
    found = jax.jit(jax.value_and_grad(scanned))(query)
    expected = jax.value_and_grad(unrolled)(query)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, bound)


def test_conditions_and_loops() -> None:
    query, key, value = drawn(np.random.default_rng(46), SIZES)

    def one(causal: Any, q: Any) -> Any:
        return jax.lax.cond(
            causal,
            lambda x: dot_product_attention(x, key, value, is_causal=True),
            lambda x: dot_product_attention(x, key, value),
            q,
        )

    for causal in (False, True):
        expected = dot_product_attention(query, key, value, is_causal=causal)
        np.testing.assert_array_equal(jax.jit(one)(causal, query), expected)


def test_donated_memory_is_not_read_again() -> None:
    query, key, value = drawn(np.random.default_rng(47), (2, 19, 33, 4, 2, 8, 8))
    expected = dot_product_attention(query, key, value)
    found = jax.jit(dot_product_attention, donate_argnums=0)(jnp.array(query), key, value)
    np.testing.assert_array_equal(found, expected)


def test_without_jit() -> None:
    inputs = drawn(np.random.default_rng(48), SIZES)
    expected = jax.jit(dot_product_attention)(*inputs)
    with jax.disable_jit():
        np.testing.assert_array_equal(dot_product_attention(*inputs), expected)


@pytest.mark.parametrize("at", range(3))
def test_sizes_of_zero(at: int) -> None:
    sizes = [0 if i == at else size for i, size in enumerate(SIZES)]
    query, key, value = drawn(np.random.default_rng(49), tuple(sizes))

    def loss(*given: Any) -> Any:
        return (dot_product_attention(*given, is_causal=True) ** 2).sum()

    out = jax.jit(dot_product_attention)(query, key, value)
    assert out.shape == (*query.shape[:3], value.shape[3])
    assert (np.asarray(out) == 0).all()
    for x, gradient in zip(
        (query, key, value), jax.grad(loss, (0, 1, 2))(query, key, value), strict=True
    ):
        assert gradient.shape == x.shape
        assert (np.asarray(gradient) == 0).all()
