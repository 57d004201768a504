"""The core that scale-out builds on: offsets, lse merging, outside lse and delta."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from multihead import _native, reference
from multihead.arguments import AttentionOptions, AttentionTensors
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, tolerance

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = ("float32", "float64")
SPLITS = [1, 16, 37, 64, 100]
N, H, L, S, D, DV = 2, 3, 70, 130, 20, 28


class Core:
    """One problem, of which any block of queries and keys can be computed on its own."""

    def __init__(self, dtype: str, rng: np.random.Generator, **options: Any) -> None:
        sizes = ((L, D), (S, D), (S, DV), (L, DV))
        self.q, self.k, self.v, self.d_out = (
            rng.standard_normal((N, H, *size)).astype(dtype) for size in sizes
        )
        self.mask: np.ndarray | None = options.get("mask")
        self.is_causal: bool = options.get("is_causal", False)
        self.dropout: tuple[float, int, int] = (options.get("dropout", 0.0), 77, 5)
        self.scale = D**-0.5
        self.dtype = dtype

    def mask_part(self, rows: slice, keys: slice) -> np.ndarray | None:
        if self.mask is None:
            return None
        return np.broadcast_to(self.mask, (N, H, L, S))[:, :, rows, keys]

    def options(self, rows: slice, keys: slice) -> AttentionOptions:
        return AttentionOptions(
            self.dtype,
            self.is_causal,
            self.scale,
            *self.dropout,
            true_hides=True,
            query_offset=rows.start,
            key_offset=keys.start,
        )

    def forward(self, rows: slice, keys: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Output, natural lse and statistics of a block."""
        q, k, v = self.q[:, :, rows], self.k[:, :, keys], self.v[:, :, keys]
        out = np.full((*q.shape[:3], DV), np.nan, self.dtype)
        stats = np.full((2, *q.shape[:3]), np.nan, self.dtype)
        tensors = AttentionTensors(q, k, v, self.mask_part(rows, keys))
        _native.attention_forward(self.options(rows, keys), tensors, out, stats, None)
        return out, natural_lse(stats), stats

    def backward(
        self, rows: slice, keys: slice, stats: np.ndarray, delta: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Gradients of a block, given statistics and delta of the whole rows."""
        q, k, v = self.q[:, :, rows], self.k[:, :, keys], self.v[:, :, keys]
        d_q, d_k, d_v = (np.full(x.shape, np.nan, self.dtype) for x in (q, k, v))
        tensors = AttentionTensors(q, k, v, self.mask_part(rows, keys))
        d_out, gradients = self.d_out[:, :, rows], AttentionTensors(d_q, d_k, d_v, None)
        _native.attention_backward(
            self.options(rows, keys), tensors, stats, delta, d_out, gradients
        )
        return {"q": d_q, "k": d_k, "v": d_v}

    def oracle(self) -> tuple[reference.AttentionResult, dict[str, np.ndarray]]:
        p, seed, counter = self.dropout
        result = reference.attention(
            self.q,
            self.k,
            self.v,
            self.mask,
            is_causal=self.is_causal,
            dropout=p,
            seed=seed,
            counter=counter,
        )
        grads = reference.attention_backward(result, self.d_out)
        return result, dict(zip("qkv", grads[:3], strict=True))


def natural_lse(stats: np.ndarray) -> np.ndarray:
    """Turn (maximum in log2 units, 1 / sum) into the natural lse; (+inf, 0) into -inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(stats[1] == 0, -np.inf, stats[0] * np.log(2) - np.log(stats[1]))


def outside_stats(lse: np.ndarray, dtype: str) -> np.ndarray:
    """Statistics made from an lse that came from elsewhere."""
    nothing = np.isneginf(lse)
    top = np.where(nothing, np.inf, lse * np.log2(np.e))
    return np.stack([top, np.where(nothing, 0.0, 1.0)]).astype(dtype)


def merge(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Merge outputs over parts of the keys by their lse."""
    lse = np.logaddexp.reduce([part[1].astype(np.float64) for part in parts])
    with np.errstate(invalid="ignore"):
        shares = [np.where(np.isneginf(part[1]), 0.0, np.exp(part[1] - lse)) for part in parts]
    out = sum(share[..., None] * part[0] for share, part in zip(shares, parts, strict=True))
    return np.asarray(out), lse


def options(kind: str, dtype: str, rng: np.random.Generator) -> dict[str, Any]:
    if kind == "bool mask":
        mask = rng.random((N, 1, L, S)) < 0.3
        mask[:, :, 3] = True
        return {"mask": mask}
    if kind == "float mask":
        mask = np.where(rng.random((H, L, S)) < 0.3, -np.inf, rng.standard_normal((H, L, S)))
        return {"mask": mask.astype(dtype)}
    return {"plain": {}, "causal": {"is_causal": True}, "dropout": {"dropout": 0.3}}[kind]


KINDS = ["plain", "causal", "dropout", "bool mask", "float mask"]
ROWS = slice(0, L)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_agrees_with_the_oracle(kind: str, dtype: str, rng: np.random.Generator) -> None:
    core = Core(dtype, rng, **options(kind, dtype, rng))
    keys = slice(0, S)
    out, lse, stats = core.forward(ROWS, keys)
    expected, expected_grads = core.oracle()
    assert_close(out, expected.out, tolerance(FORWARD, dtype), "out")
    assert_close(lse, expected.lse, tolerance(FORWARD, dtype), "lse")
    delta = np.empty((N, H, L), dtype)
    _native.delta(core.d_out, out, delta)
    wide = core.d_out.astype(np.float64)
    assert_close(delta, (wide * expected.out).sum(-1), tolerance(GRADIENT, dtype), "delta")
    grads = core.backward(ROWS, keys, stats, delta)
    assert_all_close(grads, expected_grads, tolerance(GRADIENT, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_two_halves_of_the_keys_equal_the_whole(
    split: int, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    core = Core(dtype, rng, **options(kind, dtype, rng))
    halves = [slice(0, split), slice(split, S)]
    expected, expected_grads = core.oracle()
    out, lse = merge([core.forward(ROWS, half) for half in halves])
    assert_close(out, expected.out, tolerance(FORWARD, dtype), "out")
    assert_close(lse, expected.lse, tolerance(FORWARD, dtype), "lse")

    stats = outside_stats(lse, dtype)
    delta = np.empty((N, H, L), dtype)
    _native.delta(core.d_out, out.astype(dtype), delta)
    parts = [core.backward(ROWS, half, stats, delta) for half in halves]
    whole = {
        "q": parts[0]["q"].astype(np.float64) + parts[1]["q"],
        "k": np.concatenate([part["k"] for part in parts], 2),
        "v": np.concatenate([part["v"] for part in parts], 2),
    }
    assert_all_close(whole, expected_grads, tolerance(GRADIENT, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [1, 16, 37, 64])
def test_blocks_of_queries_equal_the_whole(
    split: int, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    core = Core(dtype, rng, **options(kind, dtype, rng))
    blocks, keys = [slice(0, split), slice(split, L)], slice(0, S)
    expected, expected_grads = core.oracle()
    parts = [core.forward(rows, keys) for rows in blocks]
    out = np.concatenate([part[0] for part in parts], 2)
    assert_close(out, expected.out, tolerance(FORWARD, dtype), "out")
    grads = []
    for rows, part in zip(blocks, parts, strict=True):
        delta = np.empty(part[0].shape[:3], dtype)
        _native.delta(core.d_out[:, :, rows], part[0], delta)
        grads.append(core.backward(rows, keys, part[2], delta))
    whole = {
        "q": np.concatenate([grad["q"] for grad in grads], 2),
        "k": sum(grad["k"].astype(np.float64) for grad in grads),
        "v": sum(grad["v"].astype(np.float64) for grad in grads),
    }
    assert_all_close(whole, expected_grads, tolerance(GRADIENT, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_and_head_offsets_place_the_dropout_mask(
    dtype: str, rng: np.random.Generator
) -> None:
    core = Core(dtype, rng, dropout=0.4)
    expected, _ = core.oracle()
    weights = np.full((1, 2, L, S), np.nan, dtype)
    out = np.empty((1, 2, L, DV), dtype)
    q, k, v = (x[1:, 1:] for x in (core.q, core.k, core.v))
    how = AttentionOptions(dtype, False, core.scale, *core.dropout, batch_offset=1, head_offset=1)
    _native.attention_forward(how, AttentionTensors(q, k, v, None), out, None, weights)
    assert_close(out, expected.out[1:, 1:], tolerance(FORWARD, dtype), "out")
    assert_close(weights, expected.weights[1:, 1:], tolerance(FORWARD, dtype), "weights")
    np.testing.assert_array_equal(weights > 0, expected.weights[1:, 1:] > 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_global_positions_may_be_large(dtype: str, rng: np.random.Generator) -> None:
    far = 2**33
    q, k, v = (rng.standard_normal((1, 1, 40, 8)).astype(dtype) for _ in range(3))
    weights, out = np.empty((1, 1, 40, 40), dtype), np.empty_like(q)
    how = AttentionOptions(dtype, True, 8**-0.5, 0.5, 3, 4, query_offset=far + 10, key_offset=far)
    _native.attention_forward(how, AttentionTensors(q, k, v, None), out, None, weights)
    visible = np.arange(40) <= np.arange(40)[:, None] + 10
    queries = far + 10 + np.arange(40)
    keep, _ = reference.dropout_mask(3, 4, 0, 0, queries, np.arange(far, far + 40), 0.5)
    np.testing.assert_array_equal(weights[0, 0] > 0, visible & keep[0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_in_the_future_alone_give_nothing(dtype: str, rng: np.random.Generator) -> None:
    core = Core(dtype, rng, is_causal=True)
    out, lse, stats = core.forward(slice(0, 20), slice(20, S))
    assert not out.any()
    assert (lse == -np.inf).all()
    grads = core.backward(slice(0, 20), slice(20, S), stats, np.zeros((N, H, 20), dtype))
    assert all(not grad.any() for grad in grads.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mask_gradient_is_that_of_the_scores(dtype: str, rng: np.random.Generator) -> None:
    core = Core(dtype, rng, **options("float mask", dtype, rng))
    out, _, stats = core.forward(ROWS, slice(0, S))
    delta = np.empty((N, H, L), dtype)
    _native.delta(core.d_out, out, delta)
    d_q, d_k, d_v = (np.empty_like(x) for x in (core.q, core.k, core.v))
    d_mask = np.full((N, H, L, S), np.nan, dtype)
    everything = slice(0, S)
    tensors = AttentionTensors(core.q, core.k, core.v, core.mask_part(ROWS, everything))
    gradients = AttentionTensors(d_q, d_k, d_v, d_mask)
    _native.attention_backward(
        core.options(ROWS, everything), tensors, stats, delta, core.d_out, gradients
    )
    result, _ = core.oracle()
    expected = reference.attention_backward(result, core.d_out)[3]
    assert_close(d_mask, expected, tolerance(GRADIENT, dtype), "d_mask")
