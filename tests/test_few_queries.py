"""Few queries against many keys: split over the keys, with everything that attention takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multihead as mh
from multihead import _native, reference
from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from tolerance import FORWARD, GRADIENT, assert_close, tolerance

pytestmark = pytest.mark.usefixtures("isa")

SIZES = [(1, 256, 16, 16), (1, 700, 20, 33), (3, 1025, 7, 48), (4, 513, 64, 64)]


def inputs(rng: np.random.Generator, sizes: tuple[int, ...], dtype: str) -> tuple[Any, ...]:
    length, s, d, dv = sizes
    return tuple(
        rng.standard_normal((2, 3, *x)).astype(dtype) for x in ((length, d), (s, d), (s, dv))
    )


def native(
    q: Any, k: Any, v: Any, mask: Any, causal: bool, p: float, offsets: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Output and natural lse of the core."""
    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    stats = np.empty((2, *q.shape[:3]), q.dtype)
    if mask is not None:
        mask = np.broadcast_to(mask, (*q.shape[:3], k.shape[2]))
    options = AttentionOptions(q.dtype.name, causal, q.shape[3] ** -0.5, p, 7, 3, True, *offsets)
    _native.attention_forward(options, AttentionTensors(q, k, v, mask), out, stats, None)
    with np.errstate(divide="ignore"):
        lse = np.where(np.isposinf(stats[0]), -np.inf, stats[0] * np.log(2) - np.log(stats[1]))
    return out, lse


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["none", "bool", "float", "padded", "causal"])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("sizes", SIZES)
def test_agrees_with_the_oracle(
    sizes: tuple[int, ...], p: float, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    q, k, v = inputs(rng, sizes, dtype)
    length, s = sizes[:2]
    mask: np.ndarray | None = None
    if kind == "bool":
        mask = rng.random((2, 1, length, s)) < 0.6
        mask[0, 0, 0] = True  # a row with nothing to attend to
    if kind == "float":
        mask = rng.standard_normal((3, length, s)).astype(dtype)
        mask[..., rng.random(s) < 0.2] = -np.inf
    if kind == "padded":
        mask = np.arange(s) >= s // 3  # whole chunks are hidden
    offsets = (5, 2, s - length, 0) if kind == "causal" else (0, 1, 9, 30)
    out, lse = native(q, k, v, mask, kind == "causal", p, offsets)
    expected = reference.attention(
        q,
        k,
        v,
        mask,
        is_causal=kind == "causal",
        dropout=p,
        seed=7,
        counter=3,
        offsets=offsets,
    )
    bound = tolerance(FORWARD, dtype)
    assert_close(out, expected.out, bound, "out")
    seen = np.isfinite(expected.lse)
    assert (np.isfinite(lse) == seen).all()
    assert_close(lse[seen], expected.lse[seen], bound, "lse")


def test_strided_and_read_only_inputs(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, (2, 600, 32, 32), "float64")
    expected = reference.attention(q, k, v).out
    k, v = (np.asfortranarray(x) for x in (k, v))
    v.flags.writeable = False
    out = scaled_dot_product_attention(q[:, :, ::-1], k, v)
    assert_close(out, expected[:, :, ::-1], tolerance(FORWARD, "float64"))


def test_what_a_hidden_key_holds_stays_there(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, (2, 700, 16, 16), "float64")
    clean = v.copy()
    v[0, :, 100], v[0, :, 101] = np.nan, np.inf
    mask = np.zeros((1, 1, 2, 700), bool)
    mask[:, :, 0, 100:102] = True  # hidden from the first query only
    out, _ = native(q, k, v, mask, False, 0.0, (0, 0, 0, 0))
    expected = reference.attention(q, k, clean, mask).out
    assert np.isnan(out[0, :, 1]).all()
    assert_close(out[0, :, 0], expected[0, :, 0], tolerance(FORWARD, "float64"))
    assert_close(out[1], expected[1], tolerance(FORWARD, "float64"))


def test_a_score_that_is_not_finite_is_seen(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, (1, 600, 8, 8), "float64")
    k[0, 0, 555] = np.nan
    out, _ = native(q, k, v, None, False, 0.0, (0, 0, 0, 0))
    assert np.isnan(out[0, 0]).all()
    assert np.isfinite(out[0, 1:]).all()
    assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_backward_agrees_with_the_oracle(p: float, rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, (1, 700, 24, 24), "float64")
    d_out = rng.standard_normal(q.shape)
    _, cache = scaled_dot_product_attention(q, k, v, dropout_p=p, seed=11, return_cache=True)
    found = mh.functional.scaled_dot_product_attention_backward(d_out, cache)
    result = reference.attention(q, k, v, dropout=p, seed=11)
    expected = reference.attention_backward(result, d_out)[:3]
    for name, ours, right in zip("qkv", found, expected, strict=True):
        assert_close(ours, right, tolerance(GRADIENT, "float64"), name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_change_no_bit(dtype: str, rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, (1, 2000, 40, 40), dtype)
    before = mh.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            mh.set_num_threads(threads)
            results.append(scaled_dot_product_attention(q, k, v).tobytes())
    finally:
        mh.set_num_threads(before)
    assert len(set(results)) == 1


@pytest.mark.parametrize("size", [1e3, 1e5])
@pytest.mark.parametrize("length", [1, 3, 4])
def test_backward_sees_the_scores_that_forward_saw(
    length: int, size: float, rng: np.random.Generator
) -> None:
    # a unit in the last place of such a score moves a probability by up to a per cent
    q, k, v = inputs(rng, (length, 700, 40, 24), "float32")
    k *= np.float32(size)
    out, cache = scaled_dot_product_attention(q, k, v, scale=1.0, return_cache=True)
    stats = cache.stats
    _, _, d_v = mh.functional.scaled_dot_product_attention_backward(np.ones_like(out), cache)
    # sums of probabilities, one for each key, over all keys: 1 for each query
    np.testing.assert_allclose(d_v[..., 0].sum(-1), length, rtol=2e-6)
    assert np.isfinite(stats).all()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_no_queries_read_no_mask(packed: bool, rng: np.random.Generator) -> None:
    mask = rng.standard_normal((3, 4, 1, 700))
    for _ in range(20):  # what is read where nothing lies need not crash at once
        q, k = np.ones((3, 4, 0, 8)), np.ones((3, 4, 700, 8))
        if packed:
            q, k = (
                mh.Ragged(np.ones((2, 4, 8)), [0, 0, 2, 2]),
                mh.Ragged(np.ones((2100, 4, 8)), [0, 700, 1400, 2100]),
            )
        out, cache = scaled_dot_product_attention(
            q, k, k, np.repeat(mask, 2, 2) if packed else mask, return_cache=True
        )
        found = scaled_dot_product_attention_backward(out, cache)
    d_k = found[1].values[:700] if packed else found[1]
    assert not d_k.any()
