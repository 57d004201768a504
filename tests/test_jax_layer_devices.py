"""The whole layer over several devices in JAX: each computes its own sequences."""

from __future__ import annotations

import pytest

from scripts import printed

pytest.importorskip("jax")

# devices are made before JAX starts
START = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import multihead as mh
from multihead.jax import multi_head_attention

rng = np.random.default_rng(72)
draw = lambda *shape: rng.standard_normal(shape, np.float32)
layer = mh.MultiheadAttention(12, 3, add_bias_kv=True, seed=3)
params = {name: jnp.asarray(x) for name, x in layer.state_dict().items()}
arrays = {"query": draw(4, 7, 12), "key": draw(4, 9, 12), "attn_mask": draw(4, 1, 7, 9)}
hidden = rng.random((4, 9)) < 0.3
targets = draw(4, 7, 12)
KEY = np.array([5, 7], np.uint32)

def attend(params, a, **some):
    return multi_head_attention(params, **a, num_heads=3, key_padding_mask=hidden, **some)

def gradients(function):
    def loss(params, a):
        return (function(params, a) * targets).sum()
    return jax.jit(jax.value_and_grad(loss, (0, 1)))

def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * abs(np.asarray(b)).max()

def mesh_of(kind, *sizes):
    return jax.make_mesh(sizes, ("a", "b")[: len(sizes)], axis_types=(kind,) * len(sizes))

def placed(mesh, a, batch="a", axis=0):
    at = NamedSharding(mesh, P(*[None] * axis, batch))
    return {name: jax.device_put(x, at) for name, x in a.items()}

def gathers(compiled):
    return any(name in compiled.as_text() for name in ("all-gather", "all-to-all"))
"""


def run(code: str, devices: int = 2) -> str:
    return printed(START + code, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_jit_gathers_nothing(kind: str, dropout: bool) -> None:
    some = ", dropout_p=0.4, dropout_key=KEY" if dropout else ""
    code = f"""
function = lambda params, a: attend(params, a{some})
expected, of_one = function(params, arrays), gradients(function)(params, arrays)
mesh = mesh_of(AxisType.{kind}, 2, 2)
for batch in ("a", "b", ("a", "b")):
    spread = placed(mesh, arrays, batch)
    forward = jax.jit(function).lower(params, spread).compile()
    out = forward(params, spread)
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, P(batch)), 3)
    np.testing.assert_array_equal(out, expected)
    both = gradients(function).lower(params, spread).compile()
    close(both(params, spread), of_one)
    assert not gathers(forward) and not gathers(both)
print("equal")
"""
    assert run(code, 4) == "equal\n"


@pytest.mark.parametrize("checked", [True, False])
def test_shard_map(checked: bool) -> None:
    code = f"""
def attend(params, a):
    return multi_head_attention(params, **a, num_heads=3)

each = jax.shard_map(attend, mesh=mesh_of(AxisType.Auto, 2), in_specs=(P(), P("a")),
                     out_specs=P("a"), check_vma={checked})
np.testing.assert_array_equal(jax.jit(each)(params, arrays), attend(params, arrays))
close(gradients(each)(params, arrays), gradients(attend)(params, arrays))
print("equal")
"""
    assert run(code) == "equal\n"


def test_types_on_a_mesh_whose_axes_are_explicit() -> None:
    code = """
both = lambda params, a: attend(params, a, need_weights=True)
expected = both(params, arrays)
mesh = mesh_of(AxisType.Explicit, 2)
with jax.set_mesh(mesh):
    spread = placed(mesh, arrays)
    results = jax.jit(both)(params, spread)
    for x, y in zip(results, expected, strict=True):
        assert jax.typeof(x).sharding.spec == P("a", None, None)
        np.testing.assert_array_equal(x, y)
    d_params, d_arrays = gradients(attend)(params, spread)[1]
    for name, x in d_arrays.items():
        assert jax.typeof(x).sharding.spec[0] == "a"
    for x in d_params.values():
        assert jax.typeof(x).sharding.spec == P(*[None] * x.ndim)
print("equal")
"""
    assert run(code) == "equal\n"


def test_tokens_first() -> None:
    code = """
def attend(params, a):
    return multi_head_attention(params, a["x"], num_heads=3, batch_first=False)

some = {"x": draw(7, 4, 12)}
targets = draw(7, 4, 12)
mesh = mesh_of(AxisType.Auto, 2)
spread = placed(mesh, some, axis=1)
both = gradients(attend).lower(params, spread).compile()
close(both(params, spread), gradients(attend)(params, some))
assert not gathers(both)
out = jax.jit(attend)(params, spread)
assert out.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "a")), 3)
np.testing.assert_array_equal(out, attend(params, some))
print("equal")
"""
    assert run(code) == "equal\n"


def test_backward_is_spread_as_forward_was() -> None:
    """Whatever is spread besides: what forward leaves is as one device wrote it."""
    code = """
mesh = mesh_of(AxisType.Auto, 2)

def on(x, spec):
    return x if spec is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

def step(first, then):
    def function(params, a):
        a = {name: on(x, first) for name, x in a.items()}
        out, pull = jax.vjp(attend, params, a)
        return out, pull(on(out * targets, then))
    return jax.jit(function)

expected = step(None, None)(params, arrays)
for first, then in ((P(), P("a")), (P("a"), P())):
    for batch in (None, "a"):
        close(step(first, then)(params, placed(mesh, arrays, batch)), expected)
print("equal")
"""
    assert run(code) == "equal\n"


def test_a_batch_that_devices_do_not_divide() -> None:
    code = """
hidden, targets = hidden[:3], targets[:3]
some = {name: x[:3] for name, x in arrays.items()}
spread = placed(mesh_of(AxisType.Auto, 2), some, None)
close(gradients(attend)(params, spread), gradients(attend)(params, some))
print("equal")
"""
    assert run(code) == "equal\n"


def test_vmap_over_spread_entries() -> None:
    code = """
def attend(params, x):
    return multi_head_attention(params, x, num_heads=3)

x = draw(2, 3, 7, 12)
spread = placed(mesh_of(AxisType.Auto, 2), {"x": x})["x"]
function = jax.jit(jax.vmap(attend, (None, 0)))
compiled = function.lower(params, spread).compile()
np.testing.assert_array_equal(compiled(params, spread), function(params, x))
assert not gathers(compiled)
print("equal")
"""
    assert run(code) == "equal\n"


def test_pullbacks_called_apart() -> None:
    code = """
mesh = mesh_of(AxisType.Auto, 2)
found = []
for a in (arrays, placed(mesh, arrays)):
    out, pull = jax.vjp(attend, params, a)
    found.append(jax.jit(lambda pull, d: pull(d))(pull, targets))
close(*reversed(found))
print("equal")
"""
    assert run(code) == "equal\n"


def test_checkpoint_and_scan() -> None:
    code = """
def attend(params, a):
    def step(x, _):
        return x + multi_head_attention(params, x, num_heads=3), None
    return jax.lax.scan(jax.checkpoint(step), a["query"], None, 3)[0]

some = {"query": arrays["query"]}
for kind in (AxisType.Auto, AxisType.Explicit):
    spread = placed(mesh_of(kind, 2), some)
    both = gradients(attend).lower(params, spread).compile()
    close(both(params, spread), gradients(attend)(params, some))
    assert not gathers(both)
print("equal")
"""
    assert run(code) == "equal\n"


@pytest.mark.parametrize("way", ["jvp", "linearize"])
def test_forward_mode_on_a_mesh_whose_axes_are_explicit(way: str) -> None:
    """With all that is padded, broadcast or of each position; tokens first in one of the ways."""
    axis, first = (1, False) if way == "linearize" else (0, True)
    code = f"""
def both(params, a):
    return attend(params, a, need_weights=True, add_zero_attn=True, rope=mh.Rope(), alibi=True,
                  dropout_p=0.3, dropout_key=KEY, batch_first={first})

def jvp(at, by):
    return jax.jvp(both, at, by)

def linearize(at, by):
    out, linear = jax.linearize(both, *at)
    return out, linear(*by)

some = {{name: np.swapaxes(arrays[name], 0, {axis}) for name in ("query", "key")}}
given = params, some | {{"attn_mask": arrays["attn_mask"]}}
changes = jax.tree.map(lambda x: draw(*x.shape), given)
expected = jax.jit(jvp)(given, changes)
mesh = mesh_of(AxisType.Explicit, 2)

def spread(params, a):
    mask = placed(mesh, {{"attn_mask": a["attn_mask"]}})
    return params, placed(mesh, {{name: a[name] for name in some}}, axis={axis}) | mask

with jax.set_mesh(mesh):
    found = jax.jit({way})(spread(*given), spread(*changes))
close(found, expected)
for results in found:
    out, weights = (jax.typeof(x).sharding.spec for x in results)
    assert out[{axis}] == weights[0] == "a", (out, weights)
print("equal")
"""
    assert run(code) == "equal\n"


def test_shard_map_over_one_axis_of_a_mesh_of_two() -> None:
    code = """
def attend(params, a):
    return multi_head_attention(params, **a, num_heads=3)

some = {name: arrays[name] for name in ("query", "key")}
mesh = mesh_of(AxisType.Auto, 2, 2)
each = jax.shard_map(attend, mesh=mesh, axis_names={"a"}, in_specs=(P(), P("a")), out_specs=P("a"))
spread = placed(mesh, some, ("a", "b"))
np.testing.assert_array_equal(jax.jit(each)(params, spread), attend(params, some))
print("equal")
"""
    assert run(code, 4) == "equal\n"


def test_a_constraint_that_devices_do_not_divide() -> None:
    code = """
mesh = mesh_of(AxisType.Auto, 2)
hidden = hidden[:3]
some = {name: x[:3] for name, x in arrays.items()}

def uneven(params, a):
    at = NamedSharding(mesh, P("a"))
    return attend(params, {name: jax.lax.with_sharding_constraint(x, at) for name, x in a.items()})

np.testing.assert_array_equal(jax.jit(uneven)(params, some), attend(params, some))
print("equal")
"""
    assert run(code) == "equal\n"
