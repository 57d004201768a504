"""The layer under JAX's transforms: the bits of calls one by one, and derivatives of any order."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import multihead as mh
from layer_options import ALL

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from jax_layers import assert_same, kernels  # noqa: E402
from multihead.jax import multi_head_attention  # noqa: E402

ENTRIES = 3


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """Let there be float64."""
    with jax.enable_x64(True):
        yield


def drawn(
    rng: np.random.Generator, dtype: str = "float32", **made: Any
) -> tuple[dict[str, Any], np.ndarray]:
    """Parameters of three heads in flax's layout, and inputs (entries, N, L, E)."""
    layer = mh.MultiheadAttention(6, 3, dtype=dtype, seed=0, **made)
    x = rng.standard_normal((ENTRIES, 2, 5, 6)).astype(dtype)
    return kernels(layer.state_dict(), layer), x


def attend(params: Any, *inputs: Any, **options: Any) -> Any:
    return multi_head_attention(params, *inputs, num_heads=3, **options)


def calls(function: Any, *arguments: Any) -> int:
    """How often a program calls the engine, and that it has no loop."""
    text = str(jax.make_jaxpr(function)(*arguments))
    assert "scan" not in text
    assert "while" not in text
    return text.count("multihead_layer")


@pytest.mark.parametrize("batch_first", [True, False])
def test_vmap_is_one_call_of_a_larger_batch(batch_first: bool, rng: np.random.Generator) -> None:
    params, x = drawn(rng, add_bias_kv=True)
    mask = rng.standard_normal((3, 5, 5)).astype(np.float32)  # of each head
    padding = rng.random((ENTRIES, 2, 5)) < 0.3
    if not batch_first:
        x = x.swapaxes(1, 2).copy()

    def one(x: Any, padding: Any) -> Any:
        options = {"attn_mask": mask[None], "key_padding_mask": padding, "need_weights": True}
        return attend(params, x, batch_first=batch_first, **options)

    every = [one(*entry) for entry in zip(x, padding, strict=True)]
    assert_same(jax.vmap(one)(x, padding), tuple(map(np.stack, zip(*every, strict=True))))
    assert calls(jax.vmap(one), x, padding) == 1
    moved = jax.vmap(one, (2, 1), 1)(np.moveaxis(x, 0, 2), np.moveaxis(padding, 0, 1))
    assert_same(moved, tuple(np.stack(y, 1) for y in zip(*every, strict=True)))


def test_gradients_through_vmap_are_those_of_the_larger_batch(rng: np.random.Generator) -> None:
    params, x = drawn(rng)
    d = rng.standard_normal(x.shape).astype(np.float32)
    bias = rng.standard_normal((1, 1, 5, 5)).astype(np.float32)

    def loss(params: Any, x: Any, bias: Any) -> Any:
        mapped = jax.vmap(lambda x: attend(params, x, attn_mask=bias))
        return (mapped(x) * d).sum()

    def whole(params: Any, x: Any, bias: Any) -> Any:
        return (attend(params, x.reshape(-1, 5, 6), attn_mask=bias) * d.reshape(-1, 5, 6)).sum()

    gradient, wanted = jax.grad(loss, (0, 1, 2)), jax.grad(whole, (0, 1, 2))
    assert_same(jax.jit(gradient)(params, x, bias), jax.jit(wanted)(params, x, bias))
    assert calls(gradient, params, x, bias) == 2


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("what", ["params", "inputs", "mask"])
def test_gradients_of_each_entry(what: str, dropout: float, rng: np.random.Generator) -> None:
    params, x = drawn(rng)
    d = rng.standard_normal(x.shape).astype(np.float32)
    mask = rng.standard_normal((5, 5)).astype(np.float32)
    options = {"dropout_p": dropout, "dropout_key": jax.random.key(0)} if dropout else {}

    def loss(params: Any, x: Any, mask: Any, d: Any) -> Any:
        return (attend(params, x, attn_mask=mask, **options) * d).sum()

    gradient = jax.grad(loss, ("params", "inputs", "mask").index(what))
    every = [gradient(params, *entry) for entry in zip(x, [mask] * ENTRIES, d, strict=True)]
    wanted = jax.tree.map(lambda *y: np.stack(y), *every)
    found = jax.jit(jax.vmap(gradient, (None, 0, None, 0)))(params, x, mask, d)
    if what == "mask":  # summed in another order
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, wanted)
    else:
        assert_same(found, wanted)


def test_entries_whose_tokens_are_first(rng: np.random.Generator) -> None:
    params, x = drawn(rng)
    mask = rng.standard_normal((ENTRIES, 5, 5)).astype(np.float32)
    d = rng.standard_normal(x.shape).astype(np.float32)

    def step(first: bool, x: Any, mask: Any, d: Any) -> Any:
        def one(x: Any, mask: Any) -> Any:
            return attend(params, x, attn_mask=mask, batch_first=first)

        out, transposed = jax.vjp(one, x, mask)
        return out, *transposed(d), jax.jvp(one, (x, mask), (d, mask))[1]

    swapped = (y.swapaxes(1, 2).copy() for y in (x, d))
    found = jax.vmap(functools.partial(step, False))(*(a := tuple(swapped))[:1], mask, a[1])
    every = [step(True, *entry) for entry in zip(x, mask, d, strict=True)]
    wanted = [np.stack(y) for y in zip(*every, strict=True)]
    for i in (0, 1, 3):
        wanted[i] = wanted[i].swapaxes(1, 2)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_tangents_of_a_mask_that_entries_share(rng: np.random.Generator) -> None:
    params, x = drawn(rng)
    mask = rng.standard_normal((5, 5)).astype(np.float32)
    changes = rng.standard_normal((ENTRIES, 5, 5)).astype(np.float32)

    def change(x: Any, d_mask: Any) -> Any:
        return jax.jvp(lambda mask: attend(params, x, attn_mask=mask), (mask,), (d_mask,))[1]

    wanted = np.stack([change(*entry) for entry in zip(x, changes, strict=True)])
    np.testing.assert_allclose(jax.vmap(change)(x, changes), wanted, rtol=1e-4, atol=1e-5)


def test_vmap_over_parameters(rng: np.random.Generator) -> None:
    params, x = drawn(rng)
    several = jax.tree.map(lambda p: np.stack([p, 2 * p, -p]), params)
    one = [jax.tree.map(lambda p, i=i: p[i], several) for i in range(ENTRIES)]
    every = [attend(own, x[0]) for own in one]
    assert_same(jax.vmap(attend, (0, None))(several, x[0]), np.stack(every))


def test_an_unmapped_key_drops_the_same_of_every_entry(rng: np.random.Generator) -> None:
    params, x = drawn(rng)
    options = {"dropout_p": 0.4, "dropout_key": jax.random.key(7)}
    one = functools.partial(attend, params, **options)
    assert_same(jax.vmap(one)(x), np.stack([one(y) for y in x]))


@pytest.mark.parametrize("made", [{}, {"sinks": True, "add_bias_kv": True}])
def test_derivatives_of_any_order(made: dict[str, Any], rng: np.random.Generator) -> None:
    params, x = drawn(rng, "float64", **made)
    options: dict[str, Any] = {"is_causal": True, "softcap": 2.0, "need_weights": True}
    options |= {"dropout_p": 0.2, "dropout_key": jax.random.key(1)} if made else {}

    def function(params: Any, x: Any, mask: Any) -> Any:
        return attend(params, x, attn_mask=mask, **options)

    check_grads(function, (params, x[0], rng.standard_normal((5, 5))), order=2)


@pytest.mark.parametrize("average", [True, False])
def test_forward_mode_transposes_reverse_mode(average: bool, rng: np.random.Generator) -> None:
    """With all options at once, tokens first where weights are averaged."""
    made = ALL | {"window": (3, 1), "add_bias_kv": True, "add_zero_attn": True}
    layer = mh.MultiheadAttention(7, 4, dtype="float64", seed=0, **made)
    params = layer.state_dict()
    x, y = rng.standard_normal((6, 2, 7)), rng.standard_normal((9, 2, 7))
    padding = rng.standard_normal((2, 9))
    padding[rng.random((2, 9)) < 0.3] = -np.inf
    if not average:
        x, y, padding = x.swapaxes(0, 1), y.swapaxes(0, 1), np.isneginf(padding)
    options = {name: made[name] for name in ("window", "softcap", "alibi", "rope", "add_zero_attn")}
    options |= {"dropout_p": 0.3, "dropout_key": jax.random.key(3), "key_padding_mask": padding}
    options |= {"need_weights": True, "average_attn_weights": average, "batch_first": not average}

    def function(params: Any, x: Any, y: Any) -> Any:
        return multi_head_attention(params, x, y, num_heads=4, **options)

    given = params, x, y
    changes = jax.tree.map(lambda a: rng.standard_normal(a.shape), given)
    results, transposed = jax.vjp(function, *given)
    d_results = tuple(rng.standard_normal(a.shape) for a in results)
    moved = jax.jvp(function, given, changes)[1]

    def products(a: Any, b: Any) -> float:
        return sum(jax.tree.leaves(jax.tree.map(lambda s, t: float((s * t).sum()), a, b)))

    forward, reverse = products(moved, d_results), products(changes, transposed(d_results))
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)


def test_jacobians_and_hessians_agree(rng: np.random.Generator) -> None:
    params, x = drawn(rng, "float64")
    x = x[0, :1, :3]

    def loss(x: Any) -> Any:
        return (attend(params, x, is_causal=True) ** 2).sum()

    one = functools.partial(attend, params)
    np.testing.assert_allclose(jax.jacrev(one)(x), jax.jacfwd(one)(x), rtol=1e-9, atol=1e-12)
    hessians = [
        outer(inner(loss))(x)
        for outer in (jax.jacfwd, jax.jacrev)
        for inner in (jax.jacfwd, jax.jacrev)
    ]
    for hessian in hessians[1:]:
        np.testing.assert_allclose(hessian, hessians[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("transform", ["jit", "checkpoint", "scan"])
def test_gradients_have_the_same_bits(transform: str, rng: np.random.Generator) -> None:
    params, x = drawn(rng)

    def loss(params: Any, x: Any) -> Any:
        return (attend(params, x, is_causal=True) ** 2).sum()

    wanted = [jax.grad(loss, (0, 1))(params, y) for y in x]
    if transform == "scan":

        def every(params: Any, x: Any) -> Any:
            return jax.lax.scan(lambda total, y: (total + loss(params, y), None), 0.0, x)[0]

        d_params, d_x = jax.jit(jax.grad(every, (0, 1)))(params, x)
        assert_same(d_x, np.stack([d for _, d in wanted]))
        total = jax.tree.map(lambda *y: sum(y[::-1]), *[d for d, _ in wanted])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), d_params, total)
        return
    wrapped = getattr(jax, transform)(loss)
    assert_same([jax.grad(wrapped, (0, 1))(params, y) for y in x], wanted)


def test_a_call_without_derivatives_keeps_nothing(rng: np.random.Generator) -> None:
    params, x = drawn(rng)
    assert "uint8" not in str(jax.make_jaxpr(attend)(params, x[0])).replace("u8", "uint8")
    assert "u8[" in str(jax.make_jaxpr(jax.grad(lambda p: attend(p, x[0]).sum()))(params))


def test_export_names_its_calls(rng: np.random.Generator) -> None:
    params, x = drawn(rng)
    name = "multihead_layer_forward"
    checks = [jax.export.DisabledSafetyCheck.custom_call(name)]
    exported = jax.export.export(jax.jit(attend), disabled_checks=checks)(params, jnp.asarray(x[0]))
    again = jax.export.deserialize(exported.serialize())
    assert_same(again.call(params, x[0]), attend(params, x[0]))
