"""Exported programs of JAX that call the engine by its documented names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multihead as mh
from scripts import printed

jax = pytest.importorskip("jax")

from jax import export  # noqa: E402

from jax_calls import drawn  # noqa: E402
from multihead.jax import dot_product_attention, multi_head_attention  # noqa: E402

TARGETS = ("multihead_attention_forward", "multihead_attention_backward")
OF_LAYER = ("multihead_layer_forward", "multihead_layer_backward")
READ = """
import sys
import numpy as np
import multihead.jax
from jax import export

with open(sys.argv[1], "rb") as file:
    exported = export.deserialize(bytearray(file.read()))
given = np.load(sys.argv[2])
results = exported.call(given["query"], given["key"], given["value"])
np.savez(sys.argv[3], *results)
"""


def loss(query: Any, key: Any, value: Any) -> Any:
    return (dot_product_attention(query, key, value, is_causal=True) ** 2).sum()


def test_another_process_runs_what_was_exported(tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers")
    inputs = drawn(np.random.default_rng(81), (2, 19, 33, 4, 2, 8, 6))
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in TARGETS]
    exported = export.export(gradients, disabled_checks=checks)(*inputs)
    assert all(name in exported.mlir_module() for name in TARGETS)
    program, given, results = (tmp_path / name for name in ("program", "given.npz", "out.npz"))
    program.write_bytes(exported.serialize())
    np.savez(given, **dict(zip(("query", "key", "value"), inputs, strict=True)))
    printed(READ, str(program), str(given), str(results))
    found = np.load(results)
    for i, expected in enumerate(gradients(*inputs)):
        np.testing.assert_array_equal(found[f"arr_{i}"], expected)


def test_the_names_have_to_be_allowed() -> None:
    inputs = drawn(np.random.default_rng(82), (2, 19, 33, 4, 2, 8, 6))
    with pytest.raises(ValueError, match="multihead_attention_forward"):
        export.export(jax.jit(loss))(*inputs)


def of_any_size(function: Callable[..., Any], *shapes: str) -> Any:
    """A function of float32 arrays, exported for shapes with sizes that have names."""
    scope = export.SymbolicScope()
    types = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), np.float32)
        for shape in shapes
    ]
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in (*TARGETS, *OF_LAYER)]
    return export.export(jax.jit(function), disabled_checks=checks)(*types)


def assert_same_at(program: Any, function: Callable[..., Any], given: Sequence[Any]) -> None:
    found, expected = program.call(*given), jax.jit(function)(*given)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("derived", [False, True])
def test_batch_and_lengths_may_be_open(derived: bool) -> None:
    def attend(query: Any, key: Any, value: Any, bias: Any) -> Any:
        options = {"query_offset": "end", "window": (5, 1), "return_lse": True}
        out, lse = dot_product_attention(query, key, value, bias, **options)
        return (out**2).sum() + lse.sum() if derived else (out, lse)

    function = jax.grad(attend, (0, 1, 2, 3)) if derived else attend
    shapes = "b, l, 4, 8", "b, s, 2, 8", "b, s, 2, 6", "b, 1, l, s"
    program = of_any_size(function, *shapes)
    rng = np.random.default_rng(83)
    for n, length, s in ((3, 7, 11), (2, 19, 33)):
        bias = rng.standard_normal((n, 1, length, s), np.float32)
        assert_same_at(program, function, (*drawn(rng, (n, length, s, 4, 2, 8, 6)), bias))


def test_a_layer_s_batch_and_lengths_may_be_open(rng: np.random.Generator) -> None:
    params = mh.MultiheadAttention(12, 3, add_bias_kv=True, seed=3).state_dict()

    def attend(query: Any, key: Any) -> Any:
        options = {"is_causal": True, "alibi": True, "need_weights": True}
        return multi_head_attention(params, query, key, num_heads=3, **options)

    program = of_any_size(attend, "b, l, 12", "b, s, 12")
    for n, length, s in ((3, 7, 11), (2, 19, 5)):
        given = (rng.standard_normal((n, size, 12), np.float32) for size in (length, s))
        assert_same_at(program, attend, tuple(given))


def test_a_layer_s_gradients_want_lengths(rng: np.random.Generator) -> None:
    params = mh.MultiheadAttention(12, 3, seed=3).state_dict()

    def loss(query: Any, key: Any, **some: Any) -> Any:
        return (multi_head_attention(params, query, key, num_heads=3, **some) ** 2).sum()

    gradients = jax.grad(loss, (0, 1))
    program = of_any_size(gradients, "b, 7, 12", "b, 9, 12")
    given = (rng.standard_normal((5, size, 12), np.float32) for size in (7, 9))
    assert_same_at(program, gradients, tuple(given))
    for name, shapes in (("query", ("b, l, 12", "b, 9, 12")), ("key", ("b, 7, 12", "b, l, 12"))):
        wanted = rf"{name}: expected a length that is a number, for {{}} \(.*each; N may.*got l"
        with pytest.raises(ValueError, match=wanted.format("derivatives of the layer")):
            of_any_size(gradients, *shapes)
        with pytest.raises(ValueError, match=wanted.format("rope")):
            of_any_size(lambda *x: loss(*x, rope=mh.Rope()), *shapes)


def test_an_open_width_wants_a_scale(rng: np.random.Generator) -> None:
    shapes = ("2, 7, 3, d",) * 3
    with pytest.raises(ValueError, match=r"scale: expected a number, .*symbolic: d, got None"):
        of_any_size(dot_product_attention, *shapes)

    def scaled(*given: Any) -> Any:
        return dot_product_attention(*given, scale=0.3)

    given = tuple(rng.standard_normal((3, 2, 7, 3, 5), np.float32))
    assert_same_at(of_any_size(scaled, *shapes), scaled, given)
