"""Numbers at the ends of what floats hold: right where there is something right, on every set."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import multihead as mh
from magnitudes import attention_magnitudes, attention_squares
from multihead import functional, reference
from tolerance import CANCELLED, FORWARD, GRADIENT, assert_close, tolerance

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow"),
]
NAN, INFINITY = np.nan, np.inf
SIZE = (2, 3, 70, 8)  # more than a tile of tokens
KEYS = (2, 3, 300, 8)


def both(
    q: Any, k: Any, v: Any, d_out: Any, mask: Any = None, **options: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Outputs and gradients of ours and of the oracle, and sizes of gradients."""
    names = ("out", "q", "k", "v", "mask")[: 5 if mask is not None and mask.dtype != bool else 4]
    out, cache = functional.scaled_dot_product_attention(
        q, k, v, mask, return_cache=True, **options
    )
    grads = functional.scaled_dot_product_attention_backward(
        d_out, cache, need_mask_grad=len(names) == 5
    )
    wide = [x.astype(np.float64) for x in (q, k, v)]
    hides = mask if mask is None or mask.dtype != bool else ~mask
    core = reference.attention(*wide, hides, **options)
    exact = reference.attention_backward(core, d_out.astype(np.float64))
    fields = (exact.q, exact.k, exact.v, exact.scores.sum((0, 1)))
    sizes = attention_magnitudes(core, d_out)
    of_scores = attention_squares(core, d_out.astype(np.float64) ** 2)[2]
    sizes["mask"] = float(np.sqrt(of_scores.sum((0, 1)).max()))
    return (
        dict(zip(names, (out, *grads), strict=False)),
        dict(zip(names, (core.out, *fields), strict=False)),
        sizes,
    )


def agree(q: Any, k: Any, v: Any, d_out: Any, mask: Any = None, **options: Any) -> dict[str, Any]:
    """Hold a call against the oracle; return what it gave."""
    ours, exact, sizes = both(q, k, v, d_out, mask, **options)
    for name, x in ours.items():
        kind = FORWARD if name == "out" else GRADIENT
        scale = CANCELLED * sizes.get(name, 0.0)
        assert_close(x, exact[name], tolerance(kind, q.dtype), name, scale=scale)
    return ours


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    return np.dtype(request.param)


def normal(rng: np.random.Generator, *shape: int, dtype: Any) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


# Scores. Products of small integers and powers of two are exact: a tie is one for all.


@pytest.mark.parametrize("power", [5, 30, 48])  # scores up to 2^9, 2^59, and 1e30
def test_scores_may_be_as_large_as_floats_go(
    rng: np.random.Generator, dtype: Any, power: int
) -> None:
    q, k = ((rng.integers(-8, 9, shape) * 2.0**power).astype(dtype) for shape in (SIZE, KEYS))
    ours = agree(q, k, normal(rng, *KEYS, dtype=dtype), normal(rng, *SIZE, dtype=dtype), scale=0.5)
    assert all(np.isfinite(x).all() for x in ours.values())


@pytest.mark.parametrize("queries", [2, 70])
def test_every_score_far_below_zero(rng: np.random.Generator, dtype: Any, queries: int) -> None:
    q = -(2.0**49) * np.ones((1, 1, queries, 1), dtype)
    k = (2.0**49 * rng.integers(1, 2000, (1, 1, 300, 1))).astype(dtype)
    v, d_out = (normal(rng, *x.shape, dtype=dtype) for x in (k, q))
    agree(q, k, v, d_out, scale=1.0)


@pytest.mark.parametrize("scale", [-1.5, 0.0, 1e-30])
def test_scales_of_any_sign(rng: np.random.Generator, dtype: Any, scale: float) -> None:
    q, d_out = (normal(rng, *SIZE, dtype=dtype) for _ in range(2))
    k, v = (normal(rng, *KEYS, dtype=dtype) for _ in range(2))
    agree(q, k, v, d_out, scale=scale)
    agree(q[:, :, :3], k, v, d_out[:, :, :3], scale=scale)


# Masks


@pytest.mark.parametrize("queries", [2, 70])
def test_masks_of_the_largest_numbers(rng: np.random.Generator, dtype: Any, queries: int) -> None:
    q, d_out = (normal(rng, *SIZE, dtype=dtype)[:, :, :queries] for _ in range(2))
    k, v = (normal(rng, *KEYS, dtype=dtype) for _ in range(2))
    largest = float(np.finfo(dtype).max) / 4
    mask = rng.choice([0.0, -INFINITY, largest, -largest], (queries, 300)).astype(dtype)
    mask[0] = -INFINITY
    mask[1, 5:] = -INFINITY
    ours = agree(q, k, v, d_out, mask)
    assert not ours["out"][:, :, 0].any()
    assert not ours["q"][:, :, 0].any()


def test_infinity_in_a_mask_leaves_its_row_no_number(rng: np.random.Generator, dtype: Any) -> None:
    q = normal(rng, *SIZE, dtype=dtype)
    k, v = (normal(rng, *KEYS, dtype=dtype) for _ in range(2))
    mask = normal(rng, 70, 300, dtype=dtype)
    mask[7, 100] = INFINITY
    out = functional.scaled_dot_product_attention(q, k, v, mask)
    rest = np.arange(70) != 7
    assert np.isnan(out[:, :, 7]).all()
    exact = functional.scaled_dot_product_attention(q, k, v, np.where(mask == INFINITY, 0, mask))
    assert np.array_equal(out[:, :, rest], exact[:, :, rest])


# What is no number reaches what depends on it, and nothing else: as the oracle's does.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bad", [NAN, INFINITY])
@pytest.mark.parametrize("where", ["q", "k", "v", "d_out"])
def test_what_is_no_number_stays_where_it_belongs(
    rng: np.random.Generator, dtype: Any, where: str, bad: float, causal: bool
) -> None:
    arrays = {name: normal(rng, *SIZE, dtype=dtype) for name in ("q", "k", "v", "d_out")}
    arrays[where][1, 2, 65, 3] = bad
    ours, exact, _ = both(**arrays, is_causal=causal)
    clean = both(**{**arrays, where: np.nan_to_num(arrays[where], posinf=0)}, is_causal=causal)[0]
    for name, x in ours.items():
        wrong = ~np.isfinite(exact[name])
        assert not np.isfinite(x[wrong]).any(), name
        free = np.isfinite(exact[name]).all(axis=(2, 3))  # heads that have nothing to do with it
        assert np.array_equal(x[free], clean[name][free]), name
        assert np.isfinite(x[~wrong]).all(), name
    assert not all(np.isfinite(x).all() for x in ours.values())


# Denormals


@pytest.fixture(params=[False, True], ids=["kept", "flushed"])
def flushed(request: pytest.FixtureRequest) -> Iterator[bool]:
    """With denormals as they are, and with the processor told to take them for zeros."""
    import torch

    if not torch.set_flush_denormal(request.param):
        assert request.param, "denormals can always be kept"
        pytest.skip("this processor cannot flush them")
    yield request.param
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("queries", [2, 70])
def test_denormals_give_the_same_bits_on_all_threads(
    rng: np.random.Generator, dtype: Any, queries: int, flushed: bool
) -> None:
    tiny = float(np.finfo(dtype).tiny)
    q, d_out = (normal(rng, *SIZE, dtype=np.float64)[:, :, :queries] for _ in range(2))
    k, v = (normal(rng, *KEYS, dtype=np.float64) for _ in range(2))
    given = [x.astype(dtype) for x in (q, k, v * tiny / 64, d_out)]
    before, found = mh.get_num_threads(), []
    try:
        for threads in (1, 3):
            mh.set_num_threads(threads)
            ours, exact, _ = both(*given)
            found.append([x.tobytes() for x in ours.values()])
            for name in ("out", "v") if not flushed else ("v",):
                bound = tolerance(GRADIENT, dtype) * np.abs(exact[name]).max()
                apart = np.abs(ours[name] - exact[name]).max()
                assert apart <= max(bound, 16 * float(np.finfo(dtype).smallest_subnormal)), name
    finally:
        mh.set_num_threads(before)
    assert found[0] == found[1]
    if flushed:
        assert not ours["out"].any()


# Half precision


@pytest.mark.parametrize("queries", [2, 70])
def test_half_precision_overflows_where_the_result_does(
    rng: np.random.Generator, queries: int
) -> None:
    q = normal(rng, 1, 2, queries, 16, dtype=np.float16)
    k = normal(rng, 1, 2, 300, 16, dtype=np.float16)
    v = np.full((1, 2, 300, 16), 65504, np.float16)  # the largest
    v[:, 1] = rng.choice([-65504, 65504], (1, 300, 16))
    out, cache = functional.scaled_dot_product_attention(q, k, v, return_cache=True)
    assert (out[:, 0] == 65504).all()
    assert np.isfinite(out).all()
    d_out = np.full(out.shape, 60000, np.float16)
    d_v = functional.scaled_dot_product_attention_backward(d_out, cache)[2]
    wide = [x.astype(np.float64) for x in (q, k, v)]
    core = reference.attention(*wide)
    exact = reference.attention_backward(core, d_out.astype(np.float64)).v
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounded = exact.astype(np.float16)
    clear = np.abs(np.abs(exact) - 65520) > 65520 * tolerance(GRADIENT, np.float16)
    assert np.array_equal(np.isinf(d_v)[clear], np.isinf(rounded)[clear])
    assert np.isinf(d_v).any() == np.isinf(rounded).any()
