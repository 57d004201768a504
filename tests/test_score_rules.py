"""Between q kᵀ and the weights: grouped heads, positions, windows, caps, ALiBi, sinks."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import multihead as mh
from differences import central_difference
from multihead import reference
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from score_options import drawn_options, oracle
from tolerance import CENTRAL_DIFFERENCES, FORWARD, GRADIENT, assert_close, error, tolerance

pytestmark = pytest.mark.filterwarnings("ignore::multihead.MaskWarning")

OPTIONS = ["causal", "window", "offset", "lengths", "softcap", "alibi", "sinks", "mask", "dropout"]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def drawn_sizes(rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    n, kv_heads, group = rng.integers(1, 4, 3).tolist()
    length = int(rng.choice([1, 2, 4, 5, 40, 64, 70, 130]))
    s = int(rng.choice([1, 7, 64, 100, 129, 300, 700]))
    d, dv = int(rng.choice([4, 8, 17, 32])), int(rng.choice([4, 8, 19]))
    return (n, kv_heads * group, length, d), (n, kv_heads, s, d), (n, kv_heads, s, dv)


def run_and_compare(rng: np.random.Generator, dtype: Any, names: list[str]) -> None:
    shapes = drawn_sizes(rng)
    q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    options = drawn_options(rng, (*shapes[0][:3], shapes[1][2]), names)
    for name in ("sinks", "attn_mask"):
        if name in options and options[name].dtype != bool:
            options[name] = options[name].astype(dtype)
    exact = [x.astype(np.float64) for x in (q, k, v)]
    for i, length in enumerate(options.get("key_lengths", ())):
        for x, clean, poison in ((k, exact[1], np.nan), (v, exact[2], np.inf)):
            x[i, :, length:], clean[i, :, length:] = poison, 0.0
    out, lse, cache = scaled_dot_product_attention(
        q, k, v, enable_gqa=True, return_lse=True, return_cache=True, **options
    )
    wide = {
        name: x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == dtype else x
        for name, x in options.items()
    }
    expected = oracle(*exact, wide)
    d_out = rng.standard_normal(out.shape).astype(dtype)
    d_lse = np.where(np.isfinite(lse), rng.standard_normal(lse.shape), 0.0).astype(lse.dtype)
    found = scaled_dot_product_attention_backward(
        d_out, cache, need_mask_grad=True, need_sink_grad=True, d_lse=d_lse
    )
    grads = reference.attention_backward(expected, d_out.astype(np.float64), d_lse=d_lse)
    forward, backward = (tolerance(kind, dtype) for kind in (FORWARD, GRADIENT))
    # values of about 1: where everything is hidden, or cancels, errors are measured against that
    assert error(out, expected.out, "out", scale=1.0) <= forward
    assert error(lse, expected.lse, "lse", scale=1.0) <= forward
    for name, mine, theirs in zip("qkv", found[:3], grads[:3], strict=True):
        assert error(mine, theirs, name, scale=1.0) <= 4 * backward, name
    mask = options.get("attn_mask")
    if mask is not None and mask.dtype != bool:
        assert error(found[3], grads.scores.sum((0, 1)), "mask", scale=1.0) <= 4 * backward
    else:
        assert found[3] is None
    if "sinks" in options:
        assert error(found[4], grads.sinks, "sinks", scale=1.0) <= 4 * backward
    else:
        assert found[4] is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("draw", range(12))
@pytest.mark.usefixtures("isa")
def test_all_options_with_all_others(draw: int, dtype: str, rng: np.random.Generator) -> None:
    run_and_compare(rng, np.dtype(dtype), [x for x in OPTIONS if rng.random() < 0.5])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_alone(name: str, dtype: str, rng: np.random.Generator) -> None:
    run_and_compare(rng, BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype), [name])


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.usefixtures("isa")
def test_bfloat16_with_all_options(draw: int, rng: np.random.Generator) -> None:
    run_and_compare(rng, BFLOAT16, [x for x in OPTIONS if rng.random() < 0.5])


@pytest.mark.usefixtures("isa")
def test_scores_far_beyond_the_cap_are_as_exact(rng: np.random.Generator) -> None:
    q, k, v, d_out = (rng.standard_normal((2, 3, 20, 64)) for _ in range(4))
    options: dict[str, Any] = {"softcap": 0.5, "scale": 1.0}  # scores to some 40 times the cap
    out, cache = scaled_dot_product_attention(q, k, v, return_cache=True, **options)
    grads = scaled_dot_product_attention_backward(d_out, cache)
    expected = reference.attention(q, k, v, **options)
    wanted = reference.attention_backward(expected, d_out)
    assert_close(out, expected.out, 1e-14, "out")
    for name, grad in zip("qkv", grads, strict=False):
        assert_close(grad, getattr(wanted, name), tolerance(GRADIENT, q.dtype), name)


@pytest.mark.parametrize(
    "names", [["window", "causal"], ["softcap", "alibi"], ["sinks", "lengths"]]
)
def test_the_oracle_by_differences(names: list[str], rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal(s) for s in ((2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 7, 2)))
    mask = rng.standard_normal((2, 4, 5, 7))
    options = drawn_options(rng, mask.shape, names) | {"attn_mask": mask}
    if "window" in names:
        options["window"] = (2, 1)
    d_out, d_lse = rng.standard_normal((2, 4, 5, 2)), rng.standard_normal((2, 4, 5))

    def loss() -> float:
        result = oracle(q, k, v, options)
        lse = np.where(np.isfinite(result.lse), result.lse, 0.0)
        return float((result.out * d_out).sum() + (lse * d_lse).sum())

    grads = reference.attention_backward(oracle(q, k, v, options), d_out, d_lse=d_lse)
    pairs = [(q, grads.q), (k, grads.k), (v, grads.v), (mask, grads.scores)]
    if "sinks" in options:
        pairs.append((options["sinks"], grads.sinks))
    for variable, grad in pairs:
        difference = central_difference(loss, variable)
        assert error(grad, difference, scale=1.0) <= CENTRAL_DIFFERENCES


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_threads(dtype: str, rng: np.random.Generator) -> None:
    q, k, v = (
        rng.standard_normal(s).astype(dtype) for s in ((1, 4, 1100, 8), *[(1, 2, 1100, 8)] * 2)
    )
    options = {"window": (200, 10), "softcap": 2.0, "alibi_slopes": np.full(4, 0.01)}
    options["sinks"] = rng.standard_normal(4)
    results = []
    before = mh.get_num_threads()
    for threads in (1, 2, 3, 7):
        mh.set_num_threads(threads)
        out, cache = scaled_dot_product_attention(
            q, k, v, enable_gqa=True, return_cache=True, **options
        )
        grads = scaled_dot_product_attention_backward(out, cache, need_sink_grad=True)
        results.append([x.tobytes() for x in (out, *grads)])
    mh.set_num_threads(before)
    assert all(x == results[0] for x in results)


@pytest.mark.usefixtures("isa")
def test_prefill_in_chunks_has_the_bits_of_prefill_at_once(rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((2, 2, 300, 16), dtype=np.float32) for _ in range(3))
    options: dict[str, Any] = {"is_causal": True, "window": (120, 0), "alibi_slopes": [0.1, 0.2]}
    whole = scaled_dot_product_attention(q, k, v, **options)
    for first in range(0, 300, 90):
        last = min(first + 90, 300)
        part = scaled_dot_product_attention(
            q[:, :, first:last], k[:, :, :last], v[:, :, :last], query_offset="end", **options
        )
        assert part.tobytes() == whole[:, :, first:last].tobytes()


def test_grouped_heads_are_those_of_repeated_keys(rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal(s) for s in ((3, 6, 33, 8), (3, 2, 50, 8), (3, 2, 50, 5)))
    out, cache = scaled_dot_product_attention(q, k, v, enable_gqa=True, return_cache=True)
    d_out = rng.standard_normal(out.shape)
    grads = scaled_dot_product_attention_backward(d_out, cache)
    many = [np.repeat(x, 3, 1) for x in (k, v)]
    repeated, cache = scaled_dot_product_attention(q, *many, return_cache=True)
    theirs = scaled_dot_product_attention_backward(d_out, cache)
    assert out.tobytes() == repeated.tobytes()
    assert grads[0].tobytes() == theirs[0].tobytes()
    for mine, other in zip(grads[1:], theirs[1:], strict=True):
        summed = other.reshape(3, 2, 3, *other.shape[2:]).sum(2)
        assert_close(mine, summed, 1e-12)


def test_three_axes_are_heads(rng: np.random.Generator) -> None:
    q, k = rng.standard_normal((4, 9, 8)), rng.standard_normal((2, 11, 8))
    out = scaled_dot_product_attention(q, k, k, enable_gqa=True, sinks=np.zeros(4))
    four = scaled_dot_product_attention(
        q[None], k[None], k[None], enable_gqa=True, sinks=np.zeros(4)
    )
    assert out.tobytes() == four[0].tobytes()


def test_a_narrow_mask_hides_the_keys_after_it(rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((2, 2, 9, 4)) for _ in range(3))
    mask = rng.standard_normal((9, 6))
    out, cache = scaled_dot_product_attention(q, k, v, mask, return_cache=True)
    *_, d_mask = scaled_dot_product_attention_backward(out, cache, need_mask_grad=True)
    wide = np.pad(mask, ((0, 0), (0, 3)), constant_values=-np.inf)
    expected, cache = scaled_dot_product_attention(q, k, v, wide, return_cache=True)
    *_, d_wide = scaled_dot_product_attention_backward(expected, cache, need_mask_grad=True)
    assert out.tobytes() == expected.tobytes()
    assert d_mask.tobytes() == np.ascontiguousarray(d_wide[:, :6]).tobytes()


def test_a_sink_takes_its_part_of_the_weights(rng: np.random.Generator) -> None:
    q, k = rng.standard_normal((1, 2, 3, 4)), rng.standard_normal((1, 2, 5, 4))
    ones = np.ones((1, 2, 5, 1))
    out = scaled_dot_product_attention(q, k, ones, sinks=np.array([-np.inf, 30.0]))
    assert_close(out[0, 0], np.ones((3, 1)), 1e-12)
    assert (out[0, 1] < 1e-9).all()
    hidden = scaled_dot_product_attention(
        q, k, ones, np.zeros((3, 5), bool), sinks=np.zeros(2), return_lse=True
    )
    assert not hidden[0].any()
    assert (hidden[1] == -np.inf).all()


@pytest.mark.parametrize("sides", [(1, 0), (63, 1), (64, 63), (65, 64), (0, 65), (129, None)])
@pytest.mark.parametrize("offset", [0, 1, 63])
def test_a_window_is_the_mask_of_it_at_the_edges_of_tiles(
    sides: tuple[int, int | None], offset: int, rng: np.random.Generator
) -> None:
    q, k, v = (rng.standard_normal((1, 1, n, 4)) for n in (195, 195 + offset, 195 + offset))
    behind = np.arange(195)[:, None] + offset - np.arange(195 + offset)
    seen = (behind <= sides[0]) & (behind >= -(1000 if sides[1] is None else sides[1]))
    out, cache = scaled_dot_product_attention(
        q, k, v, window=sides, query_offset=offset, return_cache=True
    )
    expected, masked = scaled_dot_product_attention(q, k, v, attn_mask=seen, return_cache=True)
    np.testing.assert_array_equal(out, expected)
    d_out = rng.standard_normal(out.shape)
    found, wanted = (scaled_dot_product_attention_backward(d_out, c) for c in (cache, masked))
    for mine, theirs in zip(found[:3], wanted[:3], strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("largest", [10, 1050, 2200])
@pytest.mark.usefixtures("isa")
def test_sums_of_many_keys_are_joined_under_one_maximum(
    largest: int, rng: np.random.Generator
) -> None:
    # keys are summed by 1024, and the sums joined: here the largest score is in one or another
    q, k, v = (rng.standard_normal((1, 1, n, 8)) for n in (66, 2300, 2300))
    k[:, :, largest] = 0.5 * q.mean(2)
    q += 2
    k[:, :, largest] += 0.4
    out, lse = scaled_dot_product_attention(q, k, v, return_lse=True)
    expected = reference.attention(q, k, v)
    assert error(out, expected.out, "out", scale=1.0) <= tolerance(FORWARD, np.dtype("float64"))
    assert error(lse, expected.lse, "lse", scale=1.0) <= tolerance(FORWARD, np.dtype("float64"))


def test_values_beyond_a_window_do_not_matter(rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((1, 2, 400, 8)) for _ in range(3))
    options: dict[str, Any] = {"window": (10, 0)}
    expected = scaled_dot_product_attention(q, k, v, **options)
    v[:, :, :100] = np.nan
    out = scaled_dot_product_attention(q, k, v, **options)
    assert out[:, :, 110:].tobytes() == expected[:, :, 110:].tobytes()
    assert np.isnan(out[:, :, :110]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": -1}, r"window\[0\]: expected an integer at least 0, got -1"),
        ({"window": (1, 2, 3)}, r"window: expected \(left, right\)"),
        ({"window": 1.5}, r"window\[0\]: expected an integer"),
        ({"query_offset": "start"}, 'query_offset: expected integers or "end"'),
        ({"query_offset": [1, 2, 3]}, r"query_offset: expected \(2,\), got \(3,\)"),
        ({"query_offset": 2.5}, "query_offset: expected a NumPy array"),
        ({"key_lengths": [1, 8]}, "key_lengths: expected integers from 0 to 7"),
        ({"key_lengths": [1.0, 2.0]}, "key_lengths: expected integers, got float64"),
        ({"key_lengths": 3}, r"key_lengths: expected \(2,\), got \(\)"),
        ({"softcap": -1.0}, "softcap: expected None or a number above 0"),
        ({"softcap": float("nan")}, "softcap: expected None or a number above 0"),
        ({"alibi_slopes": [1.0]}, r"alibi_slopes: expected \(3,\) or \(2, 3\), got \(1,\)"),
        ({"alibi_slopes": np.ones(3, int)}, "alibi_slopes: expected floats, got int64"),
        ({"sinks": np.ones((2, 3))}, r"sinks: expected \(3,\), got \(2, 3\)"),
        ({"key": np.ones((2, 1, 7, 4))}, r"enable_gqa=True lets fewer heads"),
    ],
)
def test_wrong_options_are_named(
    change: dict[str, Any], message: str, rng: np.random.Generator
) -> None:
    q, k = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 3, 7, 4))
    with pytest.raises((ValueError, TypeError), match=message):
        scaled_dot_product_attention(**({"query": q, "key": k, "value": k} | change))


@pytest.mark.parametrize("heads", [2, 0])
def test_heads_that_do_not_divide_are_named(heads: int, rng: np.random.Generator) -> None:
    q, k = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, heads, 7, 4))
    with pytest.raises(ValueError, match="key: expected a number of heads that divides 3"):
        scaled_dot_product_attention(q, k, k, enable_gqa=True)


def test_a_gradient_of_the_statistic_must_fit(rng: np.random.Generator) -> None:
    q = rng.standard_normal((2, 3, 5, 4))
    out, cache = scaled_dot_product_attention(q, q, q, return_cache=True)
    with pytest.raises(ValueError, match=r"d_lse: expected \(2, 3, 5\), got \(2, 3\)"):
        scaled_dot_product_attention_backward(out, cache, d_lse=np.ones((2, 3)))


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_statistic_of_masks_near_the_largest_number(
    is_causal: bool, rng: np.random.Generator
) -> None:
    q, k = (rng.standard_normal((2, h, 9, 4), dtype=np.float32) for h in (4, 2))
    limit = np.finfo(np.float32).max
    mask = np.where(rng.random((9, 9)) < 0.5, limit, -limit).astype(np.float32)
    options: dict[str, Any] = {"window": (4, 2), "softcap": 2.0, "is_causal": is_causal}
    options |= {"sinks": rng.standard_normal(4), "query_offset": 1, "attn_mask": mask}
    _, lse = scaled_dot_product_attention(q, k, k, enable_gqa=True, return_lse=True, **options)
    wide = options | {"attn_mask": mask.astype(np.float64)}
    expected = oracle(*(x.astype(np.float64) for x in (q, k, k)), wide).lse
    expected = np.where(np.isfinite(expected), expected.clip(-limit, limit), expected)
    for mine, theirs in zip(lse.ravel(), expected.ravel(), strict=True):  # each by its own size
        assert error(mine, theirs, "lse", scale=1.0) <= tolerance(FORWARD, "float32")
