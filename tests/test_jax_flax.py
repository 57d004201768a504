"""Flax's modules with our attention, and our layer with flax's parameters."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from tolerance import CANCELLED, FORWARD, GRADIENT, assert_close, tolerance

jax = pytest.importorskip("jax")
pytest.importorskip("flax")

import jax.numpy as jnp  # noqa: E402
from flax import linen, nnx  # noqa: E402

from jax_layers import assert_same  # noqa: E402
from multihead.jax import (  # noqa: E402
    attention_fn,
    dot_product_attention,
    multi_head_attention,
)

LEADS = [(), (3,), (2, 3)]
MASKS = ["none", "causal", "padding", "bias", "all"]


def masks(kind: str, lead: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
    """Keywords of flax's functions; every query sees the first key."""
    given: dict[str, Any] = {}
    if kind in ("causal", "all"):
        given["is_causal"] = True
    if kind in ("padding", "all"):
        shown = rng.random((*lead[:1], *(1,) * len(lead[1:]), 1, 1, 5)) < 0.7
        shown[..., 0] = True
        given["mask"] = jnp.asarray(shown)
    if kind in ("bias", "all"):
        given["bias"] = jnp.asarray(rng.standard_normal((4, 5, 5)), jnp.float32)
    return given


def step(function: Any, arrays: list[Any], d_out: Any) -> list[Any]:
    """Output and gradients."""
    out, transposed = jax.vjp(function, *arrays)
    return [out, *transposed(d_out.astype(out.dtype))]


def exact(function: Any, arrays: list[Any], d_out: Any) -> list[Any]:
    """The same of flax, in float64."""
    with jax.enable_x64(True):
        return step(function, [np.asarray(x, np.float64) for x in arrays], d_out)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("lead", LEADS, ids=len)
@pytest.mark.parametrize("heads", [4, 2])
def test_the_function(heads: int, lead: Any, kind: str, rng: np.random.Generator) -> None:
    arrays = [
        rng.standard_normal((*lead, 5, count, 6)).astype(np.float32) for count in (4, heads, heads)
    ]
    given = masks(kind, lead, rng)
    d_out = rng.standard_normal((*lead, 5, 4, 6))

    def theirs(q: Any, k: Any, v: Any) -> Any:
        bias = {"bias": jnp.asarray(given["bias"], q.dtype)} if "bias" in given else {}
        more = given | bias | {"dropout_rate": 1e-9, "deterministic": True}
        if "mask" not in given and heads == 4:
            return nnx.dot_product_attention(q, k, v, **more)
        causal = more.pop("is_causal", False)
        shown = jnp.tril(jnp.ones((5, 5), bool)) if causal else jnp.ones((5, 5), bool)
        mask = jnp.logical_and(given.get("mask", True), shown)
        return nnx.dot_product_attention(q, k, v, **(more | {"mask": mask}))

    wanted = exact(theirs, arrays, d_out)
    found = step(lambda *x: attention_fn(*x, **given), arrays, d_out)
    bounds = [FORWARD] + [GRADIENT] * 3
    for name, x, y, bound in zip(
        ("out", "query", "key", "value"), found, wanted, bounds, strict=True
    ):
        assert x.dtype == jnp.float32
        assert_close(x, y, tolerance(bound, "float32"), name)


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_nnx(kv_heads: int | None, rng: np.random.Generator) -> None:
    made: dict[str, Any] = {"num_heads": 4, "in_features": 12, "num_kv_heads": kv_heads}
    made |= {"in_kv_features": 7, "decode": False, "bias_init": nnx.initializers.normal(0.3)}
    theirs = nnx.MultiHeadAttention(**made, rngs=nnx.Rngs(0))
    ours = nnx.MultiHeadAttention(**made, attention_fn=attention_fn, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(theirs, nnx.Param))
    x, memory = (rng.standard_normal(s).astype(np.float32) for s in ((3, 5, 12), (3, 8, 7)))
    shown = rng.random((3, 1, 1, 8)) < 0.7
    shown[..., 0] = True
    graph = {id(module): nnx.graphdef(module) for module in (theirs, ours)}

    def module(own: Any) -> Any:
        def function(params: Any, x: Any, memory: Any) -> Any:
            merged = nnx.merge(graph[id(own)], nnx.State(params))
            return merged(x, memory, mask=jnp.asarray(shown))

        return function

    def layer(params: Any, x: Any, memory: Any) -> Any:
        hidden = ~shown[:, 0, 0]
        return multi_head_attention(params, x, memory, num_heads=4, key_padding_mask=hidden)

    d_out = rng.standard_normal((3, 5, 12))
    with jax.enable_x64(True):
        arrays = jax.tree.map(lambda a: np.asarray(a, np.float64), [params, x, memory])
        wanted = jax.tree.map(np.asarray, step(module(theirs), arrays, d_out))
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(wanted))
    for function in (module(ours), layer):
        found = step(function, [params, x, memory], d_out)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert_close(a, b, tolerance(GRADIENT, "float32"), scale=CANCELLED * largest)


def test_linen(rng: np.random.Generator) -> None:
    theirs = linen.MultiHeadDotProductAttention(4)
    ours = linen.MultiHeadDotProductAttention(4, attention_fn=attention_fn)
    x = rng.standard_normal((3, 5, 12)).astype(np.float32)
    mask = linen.make_causal_mask(jnp.ones((3, 5)))  # of float32
    variables = ours.init(jax.random.key(0), x)
    found = ours.apply(variables, x, mask=mask)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
        wanted = theirs.apply(wide, x.astype(np.float64), mask=mask)
    assert_close(found, wanted, tolerance(FORWARD, "float32"))
    layer = multi_head_attention(variables["params"], x, num_heads=4, is_causal=True)
    assert_close(layer, wanted, tolerance(FORWARD, "float32"))


def test_every_keyword_of_flax_has_its_default() -> None:
    ours = inspect.signature(attention_fn).parameters
    for function in (nnx.dot_product_attention, linen.dot_product_attention):
        theirs = inspect.signature(function).parameters
        assert set(theirs) - set(ours) <= {"promote_dtype"}
        for name in set(theirs) & set(ours):
            assert ours[name].default == theirs[name].default, name


def test_dropout(rng: np.random.Generator) -> None:
    made: dict[str, Any] = {"num_heads": 2, "in_features": 8, "dropout_rate": 0.5, "decode": False}
    x = rng.standard_normal((3, 5, 8)).astype(np.float32)
    layer = nnx.MultiHeadAttention(**made, attention_fn=attention_fn, rngs=nnx.Rngs(0))
    layer.train()
    first, second = layer(x), layer(x)
    assert (first != second).any()
    layer.eval()
    assert_same(layer(x), layer(x))
    q, k, v = (rng.standard_normal((3, 5, 2, 4)).astype(np.float32) for _ in range(3))
    key = jax.random.key(5)
    for shared in (False, True):
        options = {"dropout_rng": key, "broadcast_dropout": shared}
        theirs = {"dropout_key": key, "broadcast_dropout": shared}
        found = attention_fn(q, k, v, dropout_rate=0.5, **options)
        assert_same(found, dot_product_attention(q, k, v, dropout_p=0.5, **theirs))


def test_a_broadcast_mask_is_that_of_the_first_head(rng: np.random.Generator) -> None:
    one = rng.standard_normal((1, 70, 1, 8)).astype(np.float32)
    q = np.tile(one, (3, 1, 4, 1))
    options = {"dropout_p": 0.4, "dropout_key": jax.random.key(2)}

    def loss(q: Any, shared: bool) -> Any:
        out = dot_product_attention(q, q, q, **options, broadcast_dropout=shared)
        return (out**2).sum(), out

    for found in (loss(q, True)[1], jax.grad(lambda q: loss(q, True)[0])(q)):
        assert_same(found, np.tile(found[:1, :, :1], (3, 1, 4, 1)))
    assert_same(loss(q, True)[1][:1, :, :1], loss(one, False)[1])
    assert (loss(q, False)[1] != loss(q, True)[1]).any()
    tangent = rng.standard_normal(q.shape).astype(np.float32)
    _, composed = jax.jvp(lambda q: loss(q, True)[0], (q,), (tangent,))
    engine = (jax.grad(lambda q: loss(q, True)[0])(q) * tangent).sum()
    np.testing.assert_allclose(composed, engine, rtol=1e-4)


def test_dtype_is_that_asked_for(rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((3, 5, 2, 4)).astype(np.float32) for _ in range(3))
    found = attention_fn(q, k, v, dtype=jnp.bfloat16)
    assert_same(found, attention_fn(*(x.astype(jnp.bfloat16) for x in (q, k, v))))
    for narrow in range(3):
        mixed = [x.astype(jnp.bfloat16) if i == narrow else x for i, x in enumerate((q, k, v))]
        assert attention_fn(*mixed).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_rate": 0.5}, "dropout_rng: expected a key where dropout_rate is not 0"),
        ({"dropout_rate": -0.5}, "dropout_rate: expected .*got -0.5"),
        ({"dropout_rate": 1.5, "deterministic": True}, "dropout_rate: expected .*got 1.5"),
        ({"module": object()}, "module: expected None: sow_weights=False"),
        ({"precision": "F64_F64_F64"}, "precision: expected float32's or less"),
        ({"einsum_dot_general": jax.lax.dot_general}, "einsum_dot_general: expected None"),
        ({"qk_attn_weights_einsum": jnp.einsum}, "qk_attn_weights_einsum: expected None"),
        ({"bias": np.ones((2, 5), np.float32)}, r"bias: expected a shape that broadcasts to"),
        ({"mask": np.ones((3, 1, 4, 5), bool)}, r"mask: expected .*\(3, 2, 5, 5\), got"),
    ],
)
def test_what_the_engine_does_not_do(options: dict[str, Any], message: str) -> None:
    x = np.random.default_rng(1).standard_normal((3, 5, 2, 4)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        attention_fn(x, x, x, **options)
