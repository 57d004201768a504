"""`multihead.jax.dot_product_attention` in the place of `jax.nn.dot_product_attention`.

The grid of parameters is that of JAX's own tests, which `tools/jax_own_tests.py` runs: half
precision, groups of heads and vmap; masks of every kind and together; gradients of biases. JAX's
function computes in float32, from the same rounded numbers.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tolerance import FORWARD, GRADIENT, assert_close, tolerance

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402

from multihead.jax import dot_product_attention  # noqa: E402

N, L, S, H, D = 2, 37, 45, 4, 32
DTYPES = ("float32", "bfloat16", "float16")
MASKS = (
    ("bias",),
    ("causal",),
    ("padding",),
    ("custom",),
    ("causal", "padding"),
    ("custom", "padding"),
    ("bias", "causal"),
    ("bias", "custom", "padding"),
    ("causal", "window"),
    ("window",),
)
TOOL = Path(__file__).parents[1] / "tools" / "jax_own_tests.py"


def drawn(rng: np.random.Generator, dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def differentiated(attend: Any, tensors: dict[str, Any], d_out: Any) -> dict[str, Any]:
    """Compute the output and the gradients of all tensors."""

    @jax.jit
    def both(given: dict[str, Any], cotangent: Any) -> Any:
        out, transposed = jax.vjp(attend, given)
        return out, transposed(cotangent)[0]

    out, gradients = both(tensors, d_out)
    return {"out": out, **gradients}


def assert_conforms(
    tensors: dict[str, Any], d_out: Any, vmapped: bool = False, **options: Any
) -> None:
    """Hold ours, under vmap if asked for, against JAX's in float32."""
    wide = {name: x.astype(jnp.float32) for name, x in tensors.items()}
    expected = differentiated(
        lambda given: jax.nn.dot_product_attention(**given, **options),
        wide,
        d_out.astype(jnp.float32),
    )

    def ours(given: dict[str, Any]) -> Any:
        return dot_product_attention(**given, **options)

    found = differentiated(jax.vmap(ours) if vmapped else ours, tensors, d_out)
    dtype = d_out.dtype.name
    for name, x in found.items():
        assert x.dtype.name == dtype
        bound = tolerance(FORWARD if name == "out" else GRADIENT, dtype)
        assert_close(x, expected[name], bound, name)


def test_the_parameters_are_jax_s_and_more() -> None:
    theirs = inspect.signature(jax.nn.dot_product_attention).parameters
    ours = list(inspect.signature(dot_product_attention).parameters.values())
    shared = [(p.name, p.kind, p.default) for p in ours[: len(theirs)]]
    # JAX has changed places of keywords; names and defaults count
    assert set(shared) == {(p.name, p.kind, p.default) for p in theirs.values()}
    assert [p.name for p in ours[:5]] == list(theirs)[:5]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("vmapped", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_heads(dtype: str, groups: int, vmapped: bool, rng: np.random.Generator) -> None:
    keys = (N, S, H // groups, D)
    q, k, v, d_out = drawn(rng, dtype, (N, L, H, D), keys, keys, (N, L, H, D))
    assert_conforms({"query": q, "key": k, "value": v}, d_out, vmapped)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", MASKS, ids="-".join)
def test_masks(names: tuple[str, ...], dtype: str, rng: np.random.Generator) -> None:
    q, k, v, d_out = drawn(rng, dtype, (N, L, H, D), (N, S, H, D), (N, S, H, D), (N, L, H, D))
    tensors, options = {"query": q, "key": k, "value": v}, {}
    if "bias" in names:
        (tensors["bias"],) = drawn(rng, dtype, (1, H, L, S))
    if "causal" in names:
        options["is_causal"] = True
    if "custom" in names:
        options["mask"] = jnp.asarray(np.tri(L, S, dtype=bool) | (rng.random((1, 1, L, S)) < 0.2))
    if "padding" in names:
        options["query_seq_lengths"] = jnp.array([L // 2, L // 4], jnp.int32)
        options["key_value_seq_lengths"] = jnp.array([S // 4, S // 2], jnp.int32)
    if "window" in names:
        options["local_window_size"] = (3, 2)
    assert_conforms(tensors, d_out, **options)


@pytest.mark.parametrize("vmapped", [False, True])
@pytest.mark.parametrize("batch", [1, 16])
def test_gradients_of_biases(batch: int, vmapped: bool, rng: np.random.Generator) -> None:
    x, d_out, bias = drawn(
        rng, "bfloat16", (batch, 21, H, D), (batch, 21, H, D), (batch, H, 21, 21)
    )
    mask = jnp.asarray(np.arange(21) != 3)[None, None]
    tensors = {"query": x, "key": x, "value": x, "bias": bias}
    assert_conforms(tensors, d_out, vmapped, mask=mask)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_residual(dtype: str, rng: np.random.Generator) -> None:
    q, k, v = drawn(rng, dtype, (N, L, H, D), (N, S, H, D), (N, S, H, D))
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    _, expected = jax.nn.dot_product_attention(*wide, return_residual=True)
    _, found = dot_product_attention(q, k, v, return_residual=True)
    assert found.dtype.name == dtype
    assert_close(found, expected, tolerance(FORWARD, dtype))


OWN = '''
import unittest

import jax
from jax import nn


def _is_required_cudnn_version_satisfied(*versions):
    return False


def _check_cudnn_backend(function, *args):
    return False


class Attention(unittest.TestCase):
    def testDotProductAttention(self):
        if not _is_required_cudnn_version_satisfied("8.0", 1):
            self.skipTest("no cuDNN")
        q = jax.random.normal(jax.random.key(0), (1, 5, 2, 4))
        theirs = nn.dot_product_attention(q, q, q, implementation=None)
        named = lambda x: nn.dot_product_attention(x, x, x, implementation="cudnn")
        self.assertLess(abs(named(q) - theirs).max(), 1e-6)
        self.assertTrue(_check_cudnn_backend(named, q))
        self.assertFalse(_check_cudnn_backend(nn.softmax, q))

    def testDotProductAttentionBiasGradient(self):
        """testDotProductAttentionBiasGradient(batch_size=16, use_vmap=True)"""
        self.fail("not to be run")

    def testDotProductAttentionWrong(self):
        self.assertEqual(1, {wrong})

    def testElse(self):
        self.fail("not of attention")
'''


@pytest.mark.parametrize("wrong", [1, 2])
@pytest.mark.timeout(240)
def test_the_tool_tells_what_ran(wrong: int, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "nn_test.py").write_text(OWN.format(wrong=wrong))
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path], capture_output=True, text=True, timeout=200, check=False
    )
    lines = done.stdout.splitlines()
    assert "passed   testDotProductAttention" in lines
    assert sum(line.startswith("left out testDotProductAttentionBias") for line in lines) == 1
    assert ("FAILED   testDotProductAttentionWrong" in lines) == (wrong == 2)
    assert lines[-1].endswith(f"{3 - wrong} passed, 1 left out, {wrong - 1} failed")
    assert done.returncode == wrong - 1
