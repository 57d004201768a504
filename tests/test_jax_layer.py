"""`multihead.jax.multi_head_attention` has the bits of the NumPy layer, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import multihead as mh
from layer_options import draw

jax = pytest.importorskip("jax")

from jax_layers import assert_same, jax_step, kernels, numpy_step  # noqa: E402
from multihead.jax import multi_head_attention  # noqa: E402

DTYPES = ["float64", "float32", "float16", "bfloat16"]


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """Let there be float64."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("layout", ["state", "kernels"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draws", range(6))
def test_all_at_once(draws: int, dtype: str, layout: str, rng: np.random.Generator) -> None:
    drawn = draw(rng, dtype, 100)
    wanted, d_results = numpy_step(drawn, rng)
    params = drawn.layer.state_dict()
    if layout == "kernels":
        params, wanted["params"] = (kernels(x, drawn.layer) for x in (params, wanted["params"]))
    assert_same(jax_step(drawn, params, d_results), wanted, drawn.made)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_inputs_of_float32_parameters(half: str, rng: np.random.Generator) -> None:
    drawn = draw(rng, "float32", 60)
    dtype = jax.numpy.dtype(half)
    query, key, value = (x.astype(dtype) for x in drawn.inputs)
    inputs = (query,) * 3 if drawn.one_input else (query, key, value)
    mixed = type(drawn)(drawn.layer, drawn.made, inputs, drawn.options)
    wanted, d_results = numpy_step(mixed, rng)
    assert_same(jax_step(mixed, drawn.layer.state_dict(), d_results), wanted, drawn.made)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("form", ["tokens first", "unbatched"])
def test_other_axes(form: str, average: bool, rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(12, 3, kdim=5, vdim=7, seed=0)
    lead = (2,) if form == "tokens first" else ()
    query, key, value = (
        rng.standard_normal((n, *lead, width)).astype(np.float32)
        for n, width in ((9, 12), (13, 5), (13, 7))
    )
    padding = rng.standard_normal((*lead, 13)).astype(np.float32)
    mask = rng.random((6 if lead else 3, 9, 13)) < 0.2
    masks = {"key_padding_mask": padding, "attn_mask": mask, "average_attn_weights": average}
    wanted = layer(query, key, value, **masks)
    d_results = tuple(rng.standard_normal(x.shape).astype(np.float32) for x in wanted)
    gradients = layer.backward(*d_results, need_mask_grad=True)

    def function(params: Any, inputs: Any, padding: Any) -> Any:
        given = masks | {"key_padding_mask": padding, "batch_first": not lead}
        return multi_head_attention(params, *inputs, num_heads=3, need_weights=True, **given)

    found, transposed = jax.vjp(function, layer.state_dict(), (query, key, value), padding)
    assert_same(found, wanted)
    d_params, d_inputs, d_padding = transposed(d_results)
    assert_same(d_params, layer.grads)
    assert_same((*d_inputs, d_padding), (*gradients[:3], gradients[4]))


@pytest.mark.parametrize("shape", [(6, 5, 7), (1, 1, 5, 7), (2, 1, 1, 7), (1, 3, 5, 1), (5, 7)])
def test_gradients_of_masks(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(6, 3, batch_first=True, seed=0)
    query, key = (rng.standard_normal((2, n, 6)).astype(np.float32) for n in (5, 7))
    mask, d_out = (rng.standard_normal(s).astype(np.float32) for s in (shape, query.shape))
    out, _ = layer(query, key, key, attn_mask=mask, need_weights=False)
    *_, d_mask, _ = layer.backward(d_out, need_mask_grad=True)

    def function(mask: Any) -> Any:
        given = layer.state_dict(), query, key
        return multi_head_attention(*given, num_heads=3, attn_mask=mask)

    found, transposed = jax.vjp(function, mask)
    assert_same(found, out)
    assert_same(transposed(d_out)[0], d_mask)


def test_finite_masks_of_another_precision_stay_finite(rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(6, 3, batch_first=True, seed=0)
    x = rng.standard_normal((2, 5, 6)).astype(np.float32)
    mask = np.where(rng.random((5, 5)) < 0.3, -1e300, 0.0)
    out, _ = layer(x, x, x, attn_mask=mask, need_weights=False)
    found = multi_head_attention(layer.state_dict(), x, num_heads=3, attn_mask=mask)
    assert_same(found, out)


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_of_something(sizes: tuple[int, int, int], rng: np.random.Generator) -> None:
    n, length, keys = sizes
    layer = mh.MultiheadAttention(6, 3, batch_first=True, seed=0)
    query, key = (rng.standard_normal((n, m, 6)).astype(np.float32) for m in (length, keys))
    out, _ = layer(query, key, key, need_weights=False)
    d_inputs = layer.backward(np.ones_like(out))

    def function(params: Any, *inputs: Any) -> Any:
        return multi_head_attention(params, *inputs, num_heads=3)

    found, transposed = jax.vjp(function, layer.state_dict(), query, key, key.copy())
    assert_same(found, out)
    assert_same(transposed(np.ones_like(out)), (dict(layer.grads), *d_inputs))


def test_dropout_wants_a_key(rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(6, 3, seed=0)
    x = rng.standard_normal((5, 6)).astype(np.float32)
    with pytest.raises(ValueError, match="dropout_key: expected a key"):
        multi_head_attention(layer.state_dict(), x, num_heads=3, dropout_p=0.5)
    key = jax.random.key(3)
    layer.rng_state = (3, 0)
    layer.dropout = 0.5
    wanted, _ = layer(x, x, x, need_weights=False)
    options = {"num_heads": 3, "dropout_p": 0.5, "dropout_key": key}
    assert_same(multi_head_attention(layer.state_dict(), x, **options), wanted)
