"""Attention over several devices in JAX: each computes its own sequences and heads."""

from __future__ import annotations

import pytest

from scripts import printed

pytest.importorskip("jax")

# devices are made before JAX starts
START = """
import itertools
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from multihead.jax import dot_product_attention

rng = np.random.default_rng(71)
draw = lambda *shape: rng.standard_normal(shape, np.float32)
arrays = {"query": draw(4, 18, 4, 8), "key": draw(4, 23, 2, 8), "value": draw(4, 23, 2, 6),
          "bias": draw(1, 4, 18, 23), "sinks": draw(4)}
weights = draw(4, 18, 4, 6)
KEY = np.array([5, 7], np.uint32)

def attend(a, **some):
    return dot_product_attention(**a, is_causal=True, query_offset="end", **some)

def loss(function):
    return lambda a: (function(a) * weights).sum()

def gradients(function):
    return jax.jit(jax.value_and_grad(loss(function)))

def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * abs(np.asarray(b)).max()

def placed(mesh, batch, heads):
    at = {name: P(batch, None, heads) for name in ("query", "key", "value")}
    at |= {"bias": P(None, heads), "sinks": P(heads)}
    return {name: jax.device_put(x, NamedSharding(mesh, at[name])) for name, x in arrays.items()}
"""


def run(code: str, devices: int = 2) -> str:
    return printed(START + code, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")


@pytest.mark.parametrize("checked", [True, False])
def test_shard_map(checked: bool) -> None:
    code = f"""
mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
for batch, heads in (("d", None), (None, "d")):
    at = {{"query": P(batch, None, heads), "key": P(batch, None, heads),
          "value": P(batch, None, heads), "bias": P(None, heads), "sinks": P(heads)}}
    each = jax.shard_map(attend, mesh=mesh, in_specs=(at,), out_specs=P(batch, None, heads),
                         check_vma={checked})
    np.testing.assert_array_equal(jax.jit(each)(arrays), attend(arrays))
    close(gradients(each)(arrays), gradients(attend)(arrays))
print("equal")
"""
    assert run(code) == "equal\n"


@pytest.mark.parametrize("dropout", [False, True])
def test_jit_gathers_nothing(dropout: bool) -> None:
    some = ", dropout_p=0.4, dropout_key=KEY" if dropout else ""
    code = f"""
mesh = jax.make_mesh((2, 2), ("b", "h"), axis_types=(AxisType.Auto,) * 2)
function = lambda a: attend(a{some})
expected, of_one = function(arrays), gradients(function)(arrays)
for batch, heads in (("b", None), (None, "h"), ("b", "h"), (("b", "h"), None)):
    spread = placed(mesh, batch, heads)
    forward = jax.jit(function).lower(spread).compile()
    out = forward(spread)
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, P(batch, None, heads)), 4)
    np.testing.assert_array_equal(out, expected)
    both = gradients(function).lower(spread).compile()
    close(both(spread), of_one)
    for text in (forward.as_text(), both.as_text()):
        assert "all-gather" not in text and "all-to-all" not in text
print("equal")
"""
    assert run(code, 4) == "equal\n"


def test_heads_of_keys_that_do_not_divide_are_gathered() -> None:
    code = """
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
at = lambda name: P(None, None, "d") if name == "query" else P()
spread = {name: jax.device_put(x, NamedSharding(mesh, at(name))) for name, x in arrays.items()}
np.testing.assert_array_equal(jax.jit(attend)(spread), attend(arrays))
close(gradients(attend)(spread), gradients(attend)(arrays))
print("equal")
"""
    assert run(code, 4) == "equal\n"


def test_meshes_whose_axes_are_explicit() -> None:
    code = """
expected, of_one = attend(arrays), gradients(attend)(arrays)
mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(mesh):
    spread = placed(mesh, "d", None)
    out = jax.jit(attend)(spread)
    assert jax.typeof(out).sharding.spec == P("d", None, None, None)
    np.testing.assert_array_equal(out, expected)
    close(gradients(attend)(spread), of_one)
print("equal")
"""
    assert run(code) == "equal\n"


def test_vmap_over_spread_entries() -> None:
    code = """
mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
each = {name: np.stack([x, x + 1]) for name, x in arrays.items() if x.ndim == len(x) == 4}
spread = {name: jax.device_put(x, NamedSharding(mesh, P("d"))) for name, x in each.items()}
function = jax.jit(jax.vmap(attend))
compiled = function.lower(spread).compile()
np.testing.assert_array_equal(compiled(spread), function(each))
assert "all-gather" not in compiled.as_text()
print("equal")
"""
    assert run(code) == "equal\n"


def test_pmap_of_two_devices() -> None:
    code = """
whole = {name: x for name, x in arrays.items() if x.ndim == len(x) == 4}
halves = {name: x.reshape(2, 2, *x.shape[1:]) for name, x in whole.items()}
out = jax.pmap(attend)(halves)
np.testing.assert_array_equal(out.reshape(4, *out.shape[2:]), attend(whole))
print("equal")
"""
    assert run(code) == "equal\n"


def test_dropout_of_mapped_entries_is_that_of_one_device() -> None:
    code = """
mesh = jax.make_mesh((2, 2), ("b", "h"), axis_types=(AxisType.Auto,) * 2)
each = {name: np.stack([x, x + 1, x - 1]) for name, x in arrays.items() if len(x) == x.ndim == 4}
del each["value"]
function = jax.vmap(lambda a: dot_product_attention(a["query"], a["key"], a["key"],
                                                    dropout_p=0.4, dropout_key=KEY))
at = NamedSharding(mesh, P(None, "b", None, "h"))
spread = {name: jax.device_put(x, at) for name, x in each.items()}
np.testing.assert_array_equal(jax.jit(function)(spread), function(each))
print("equal")
"""
    assert run(code, 4) == "equal\n"


def test_logarithms_on_a_mesh_whose_axes_are_explicit() -> None:
    code = """
both = lambda a: attend(a, return_lse=True)
total = lambda a: sum((jnp.sin(x) ** 2).sum() for x in both(a))
step = jax.jit(lambda a: (jax.jvp(both, (a,), (a,)), jax.grad(total)(a)))
expected = step(arrays)
mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(mesh):
    found = step(placed(mesh, "d", None))
close(found, expected)
for out, lse in found[0]:
    assert jax.typeof(out).sharding.spec[0] == jax.typeof(lse).sharding.spec[0] == "d"
print("equal")
"""
    assert run(code) == "equal\n"
