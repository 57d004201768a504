"""Packed sequences in attention alone: each as if it were by itself, with no padding anywhere."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

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

Parts = list[np.ndarray]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# queries and keys: few queries of many keys, none, one tile and several, in any order
LENGTHS = [(3, 5), (70, 130), (1, 300), (1, 701), (4, 256), (0, 7), (9, 0), (130, 70), (2, 20)]
EVERY = ["causal", "window", "softcap", "sinks", "mask"]
SOME = [[], ["causal"], ["mask"], EVERY, [*EVERY, "alibi", "offset"], ["dropout", "sinks"]]


def parts(
    rng: np.random.Generator, lengths: list[int], heads: int, width: int, dtype: Any = np.float64
) -> Parts:
    return [rng.standard_normal((n, heads, width)).astype(dtype) for n in lengths]


def drawn(
    rng: np.random.Generator, lengths: list[tuple[int, int]], dtype: Any = np.float64
) -> tuple[Parts, Parts, Parts, Parts]:
    """Queries, keys, values and gradients of the results; six heads of queries, two of keys."""
    q, k = zip(*lengths, strict=True)
    sizes = (q, 6, 16), (k, 2, 16), (k, 2, 5), (q, 6, 5)
    a, b, c, d = (parts(rng, list(n), *size, dtype) for n, *size in sizes)
    return a, b, c, d


def heads_first(x: np.ndarray) -> np.ndarray:
    """One sequence as a batch."""
    return np.asarray(x).swapaxes(0, 1)[None]


def options_of(options: dict[str, Any], n: int, length: int, keys: int) -> dict[str, Any]:
    """What a packed call says of one of its sequences."""
    one = dict(options)
    for name in ("key_lengths", "query_offset"):
        if isinstance(one.get(name), np.ndarray):
            one[name] = one[name][n : n + 1]
    if np.ndim(one.get("alibi_slopes", 0)) == 2:
        one["alibi_slopes"] = one["alibi_slopes"][n : n + 1]
    if "attn_mask" in one:
        mask = one["attn_mask"]
        mask = mask[n : n + 1] if mask.ndim == 4 and mask.shape[0] > 1 else mask
        one["attn_mask"] = mask[..., :length, :keys]
    return one


def run(inputs: Any, d_out: Any, d_lse: Any, options: dict[str, Any]) -> list[Any]:
    """Both results and all gradients of one call."""
    out, lse, cache = scaled_dot_product_attention(
        *inputs, enable_gqa=True, return_lse=True, return_cache=True, **options
    )
    found = scaled_dot_product_attention_backward(
        d_out, cache, need_mask_grad=True, need_sink_grad=True, d_lse=d_lse
    )
    return [out, lse, *found]


@pytest.mark.parametrize("names", SOME, ids=lambda x: "-".join(x) or "plain")
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", BFLOAT16], ids=str)
def test_the_bits_of_each_sequence_by_itself(
    isa: str, names: list[str], dtype: Any, rng: np.random.Generator
) -> None:
    q, k, v, g = drawn(rng, LENGTHS, dtype)
    longest = [max(x) for x in zip(*LENGTHS, strict=True)]
    options = drawn_options(rng, (len(LENGTHS), 6, *longest), names)
    if "dropout" in names:  # it draws by the place in the batch
        q, k, v, g = (x[-2:-1] for x in (q, k, v, g))
    if isinstance(options.get("query_offset"), int):
        options["query_offset"] = "end"
    inputs = [mh.Ragged.from_list(x) for x in (q, k, v)]
    d_out = mh.Ragged.from_list(g)
    values = rng.standard_normal(d_out.values.shape[:2])
    d_lse = mh.Ragged(values, d_out.offsets)
    out, lse, *grads, d_mask, d_sinks = run(inputs, d_out, d_lse, options)
    assert (d_mask is None) == (options.get("attn_mask", np.array(True)).dtype == bool)
    assert (d_sinks is None) == ("sinks" not in options)
    assert out.values.dtype == inputs[0].values.dtype
    for n, alone in enumerate(zip(q, k, v, strict=True)):
        one = options_of(options, n, len(alone[0]), len(alone[1]))
        dense = [heads_first(x) for x in (*alone, g[n], d_lse[n])]
        expected = run(dense[:3], dense[3], dense[4], one)
        found = [out[n], lse[n], *(x[n] for x in grads)]
        for name, x, y in zip(("out", "lse", *"qkv"), found, expected, strict=False):
            assert np.array_equal(heads_first(x), y, equal_nan=dtype != BFLOAT16), (name, n)


@pytest.mark.parametrize("draw", range(8))
def test_agrees_with_the_oracle(isa: str, draw: int, rng: np.random.Generator) -> None:
    lengths = [tuple(x) for x in rng.integers(0, 140, (int(rng.integers(1, 6)), 2)).tolist()]
    names = rng.permutation([*EVERY, "alibi", "offset", "dropout"])[: rng.integers(9)].tolist()
    q, k, v, g = drawn(rng, lengths)
    longest = [max(x) for x in zip(*lengths, strict=True)]
    options = drawn_options(rng, (len(lengths), 6, *longest), names)
    if rng.random() < 0.5:
        options["key_lengths"] = np.array([rng.integers(0, s + 1) for _, s in lengths])
    clean = [[x.copy() for x in y] for y in (k, v)]
    for n, m in enumerate(options.get("key_lengths", ())):
        k[n][m:], v[n][m:], clean[0][n][m:], clean[1][n][m:] = np.nan, np.inf, 0, 0
    inputs = [mh.Ragged.from_list(x) for x in (q, k, v)]
    d_out = mh.Ragged.from_list(g)
    d_lse = mh.Ragged(rng.standard_normal(d_out.values.shape[:2]), d_out.offsets)
    out, lse, *grads, d_mask, d_sinks = run(inputs, d_out, d_lse, options)
    bounds = tolerance(FORWARD, "float64"), 4 * tolerance(GRADIENT, "float64")
    sum_of_sinks = 0.0
    sum_of_masks = np.zeros(np.shape(options.get("attn_mask", 0.0)))
    for n, (a, b, c) in enumerate(zip(q, *clean, strict=True)):
        one = options_of(options, n, len(a), len(b))
        expected = oracle(*map(heads_first, (a, b, c)), one | {"offsets": (n, 0, 0, 0)})
        assert error(heads_first(out[n]), expected.out, "out", scale=1.0) <= bounds[0]
        assert error(heads_first(lse[n]), expected.lse, "lse", scale=1.0) <= bounds[0]
        gradient = np.where(np.isfinite(expected.lse), heads_first(d_lse[n]), 0.0)
        theirs = reference.attention_backward(expected, heads_first(g[n]), d_lse=gradient)
        for name, x, y in zip("qkv", grads, theirs, strict=False):
            assert error(heads_first(x[n]), y, name, scale=1.0) <= bounds[1], (name, n)
        sum_of_sinks = sum_of_sinks + theirs.sinks
        if d_mask is not None:
            sum_of_masks[: len(a), : len(b)] += theirs.scores.sum((0, 1))
    if d_sinks is not None:
        assert_close(d_sinks, sum_of_sinks, bounds[1], "sinks", scale=1.0)
    if d_mask is not None:
        assert_close(d_mask, sum_of_masks, bounds[1], "mask", scale=1.0)


def test_dropout_is_that_of_the_place_in_the_batch_whichever_way_a_sequence_goes(
    isa: str, rng: np.random.Generator
) -> None:
    lengths = [(70, 30), (2, 400), (3, 300), (90, 270)]  # the middle ones split their keys
    q, k, v, _ = drawn(rng, lengths)
    options = {"dropout_p": 0.4, "seed": 5}
    inputs = [mh.Ragged.from_list(x) for x in (q, k, v)]
    out = scaled_dot_product_attention(*inputs, enable_gqa=True, **options)
    for n, three in enumerate(zip(q, k, v, strict=True)):
        expected = oracle(*map(heads_first, three), options | {"offsets": (n, 0, 0, 0)})
        assert_close(heads_first(out[n]), expected.out, tolerance(FORWARD, "float64"), f"{n}")


def test_central_differences(rng: np.random.Generator) -> None:
    lengths = [(3, 4), (0, 2), (5, 3)]
    q, k, v, g = drawn(rng, lengths)
    inputs = [mh.Ragged.from_list(x) for x in (q, k, v)]
    d_out = mh.Ragged.from_list(g)
    d_lse = mh.Ragged(rng.standard_normal((8, 6)), d_out.offsets)
    mask, sinks = rng.standard_normal((5, 4)), rng.standard_normal(6)
    options = {
        "attn_mask": mask,
        "sinks": sinks,
        "softcap": 2.0,
        "window": (2, 1),
        "is_causal": True,
    }
    options |= {"dropout_p": 0.2, "seed": 3}

    def loss() -> float:
        out, lse = scaled_dot_product_attention(
            *inputs, enable_gqa=True, return_lse=True, **options
        )
        seen = np.isfinite(lse.values)
        return float((out.values * d_out.values).sum() + (lse.values * d_lse.values)[seen].sum())

    found = run(inputs, d_out, d_lse, options)[2:]
    variables = [*(x.values for x in inputs), mask, sinks]
    for grad, variable in zip(found, variables, strict=True):
        mine = grad.values if isinstance(grad, mh.Ragged) else grad
        assert_close(mine, central_difference(loss, variable), CENTRAL_DIFFERENCES, scale=1.0)


def test_pytorch_says_the_same_of_each_sequence(rng: np.random.Generator) -> None:
    q, k, v, g = drawn(rng, [(n, n) for n in (33, 1, 70)])
    x = [torch.from_numpy(np.concatenate(part)) for part in (q, k, v, g)]
    offsets = torch.tensor([0, 33, 34, 104], dtype=torch.int32)
    packed = [mh.Ragged(y, offsets) for y in x]
    out, cache = scaled_dot_product_attention(
        *packed[:3], is_causal=True, enable_gqa=True, return_cache=True
    )
    grads = scaled_dot_product_attention_backward(packed[3], cache)
    assert isinstance(out.values, torch.Tensor)
    for n, part in enumerate(zip(*packed, strict=True)):
        a, b, c, d = (y.transpose(0, 1)[None].clone().requires_grad_() for y in part)
        expected = torch.nn.functional.scaled_dot_product_attention(
            a, b, c, is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(out[n], expected[0].transpose(0, 1))
        theirs = torch.autograd.grad(expected, (a, b, c), d)
        for mine, y in zip(grads, theirs, strict=True):
            torch.testing.assert_close(mine[n], y[0].transpose(0, 1))


def test_strides_and_shared_arrays(rng: np.random.Generator) -> None:
    """Views of one array of projections, heads before tokens in memory, and one Ragged thrice."""
    qkv = rng.standard_normal((11, 3, 4, 8))
    offsets = [0, 4, 4, 11]
    views = [mh.Ragged(qkv[:, i], offsets) for i in range(3)]
    copies = [mh.Ragged(qkv[:, i].copy(), offsets) for i in range(3)]
    turned = [mh.Ragged(np.asfortranarray(x.values), offsets) for x in views]
    expected = scaled_dot_product_attention(*copies, is_causal=True)
    for inputs in (views, turned):
        assert np.array_equal(
            scaled_dot_product_attention(*inputs, is_causal=True).values, expected.values
        )
    x = copies[0]
    assert np.array_equal(
        scaled_dot_product_attention(x, x, x).values,
        scaled_dot_product_attention(
            x, *(mh.Ragged(x.values.copy(), offsets) for _ in "kv")
        ).values,
    )


@pytest.mark.parametrize("offsets", [[0], [0, 0], [0, 0, 0]])
def test_nothing_at_all(offsets: list[int]) -> None:
    x = mh.Ragged(np.zeros((0, 2, 4)), offsets)
    out, lse, cache = scaled_dot_product_attention(x, x, x, return_lse=True, return_cache=True)
    assert out.values.shape == (0, 2, 4)
    assert lse.values.shape == (0, 2)
    grads = scaled_dot_product_attention_backward(out, cache)
    assert [len(x) for x in grads] == [len(offsets) - 1] * 3


def test_a_statistic_that_the_engine_squeezes(rng: np.random.Generator) -> None:
    """A mask near the largest float32 is exact in the statistic of a packed row, too."""
    x = mh.Ragged(rng.standard_normal((7, 2, 4)).astype(np.float32), [0, 2, 7])
    mask = np.full((5, 5), np.finfo(np.float32).min)
    mask[:, 1] = -3e38
    _, lse = scaled_dot_product_attention(x, x, x, mask, return_lse=True)
    for n, part in enumerate(x):
        size = len(part)
        _, alone = scaled_dot_product_attention(
            *[heads_first(part)] * 3, mask[:size, :size], return_lse=True
        )
        assert np.array_equal(heads_first(lse[n]), alone)
        assert np.isfinite(alone).all()


def test_half_keys_under_float32_queries(rng: np.random.Generator) -> None:
    q, k, v, g = drawn(rng, LENGTHS, np.float32)
    inputs = [
        mh.Ragged.from_list(q),
        *(mh.Ragged.from_list([y.astype(np.float16) for y in x]) for x in (k, v)),
    ]
    out, cache = scaled_dot_product_attention(*inputs, enable_gqa=True, return_cache=True)
    grads = scaled_dot_product_attention_backward(mh.Ragged.from_list(g), cache)
    assert out.values.dtype == np.float32
    assert [x.values.dtype for x in grads] == [np.float32, np.float16, np.float16]
    for n, part in enumerate(zip(*inputs, strict=True)):
        alone = scaled_dot_product_attention(*map(heads_first, part), enable_gqa=True)
        assert np.array_equal(heads_first(out[n]), alone)


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "window": 9, "query_offset": "end"}])
def test_what_is_no_number_stays_in_its_sequence(
    isa: str, options: dict[str, Any], rng: np.random.Generator
) -> None:
    q, k, v, g = drawn(rng, LENGTHS * 2, np.float32)
    inputs = [mh.Ragged.from_list(x) for x in (q, k, v)]
    d_out = mh.Ragged.from_list(g)
    d_lse = mh.Ragged(np.ones(d_out.values.shape[:2], np.float32), d_out.offsets)
    before = run(inputs, d_out, d_lse, options)[:5]
    for n in range(1, len(q), 2):
        for x in (*inputs, d_out):
            x[n][...] = np.nan
    after = run(inputs, d_out, d_lse, options)[:5]
    for n in range(0, len(q), 2):
        for x, y in zip(before, after, strict=True):
            assert np.array_equal(x[n], y[n]), n


@pytest.mark.usefixtures("threads")
def test_any_number_of_threads(rng: np.random.Generator) -> None:
    q, k, v, g = drawn(rng, LENGTHS, np.float32)
    inputs = [mh.Ragged.from_list(x) for x in (q, k, v)]
    d_lse = mh.Ragged(np.ones((sum(map(len, q)), 6)), inputs[0].offsets)
    found = run(inputs, mh.Ragged.from_list(g), d_lse, {"is_causal": True})[:5]
    before = mh.get_num_threads()
    mh.set_num_threads(1)
    expected = run(inputs, mh.Ragged.from_list(g), d_lse, {"is_causal": True})[:5]
    mh.set_num_threads(before)
    for x, y in zip(found, expected, strict=True):
        assert np.array_equal(x.values, y.values)


def test_what_does_not_fit_is_refused() -> None:
    x = mh.Ragged(np.zeros((7, 4, 8)), [0, 2, 7])

    def ragged(*shape: int, offsets: tuple[int, ...] = (0, 2, 7)) -> Any:
        return mh.Ragged(np.zeros(shape), offsets)

    def refused(match: str, *inputs: Any, kind: Any = ValueError, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            scaled_dot_product_attention(*inputs, **options)

    dense = np.zeros((1, 4, 7, 8))
    refused(r"^key: expected a Ragged, as the others are", x, dense, dense, kind=TypeError)
    refused(r"^query: expected a Ragged", dense, x, x, kind=TypeError)
    flat = ragged(7, 32)
    refused(r"^query\.values: expected \(total, H, D\), got \(7, 32\)", flat, flat, flat)
    refused(
        r"^key: expected a Ragged of 2 sequences, got 1", x, *[ragged(7, 4, 8, offsets=(0, 7))] * 2
    )
    moved = ragged(7, 4, 8, offsets=(0, 3, 7))
    refused(r"^value: expected a Ragged with the offsets of key", x, x, moved)
    refused(r"^key\.values: expected \(total, Hk, 8\), got \(7, 4, 9\)", x, *[ragged(7, 4, 9)] * 2)
    fewer = ragged(7, 2, 8)
    refused(r"^key\.values: expected .* \(enable_gqa=True lets", x, fewer, fewer)
    refused(r"^key\.values: .*divides 4, got 3", x, *[ragged(7, 3, 8)] * 2, enable_gqa=True)
    refused(r"^value\.values: expected \(7, 4, Dv\)", x, x, ragged(7, 2, 8))
    single = mh.Ragged(np.zeros((7, 4, 8), np.float32), x.offsets)
    refused(r"^key\.values: expected float64, got float32", x, single, single, kind=TypeError)
    refused(r"^attn_mask: .*\(2, 4, 5, 5\)", x, x, x, np.zeros((7, 7), bool))
    refused(r"^key_lengths: expected at most the keys of each", x, x, x, key_lengths=[3, 5])
    refused(r"^query_offset: expected \(2,\)", x, x, x, query_offset=np.zeros(3, int))
    with pytest.raises(ValueError, match=r"^values: expected \(total, E\) or \(total, H, D\)"):
        mh.Ragged(np.zeros((1, 7, 4, 8)), [0, 1])


def test_gradients_that_do_not_fit_are_refused() -> None:
    x = mh.Ragged(np.zeros((7, 4, 8)), [0, 2, 7])
    _, cache = scaled_dot_product_attention(x, x, x, return_cache=True)
    _, of_dense = scaled_dot_product_attention(*[np.zeros((1, 7, 8))] * 3, return_cache=True)

    def refused(match: str, kind: Any, *given: Any, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            scaled_dot_product_attention_backward(*given, **options)

    refused(r"^d_out: expected a Ragged, as the inputs", TypeError, x.values, cache)
    refused(r"^d_out: expected an array, as the inputs", TypeError, x, of_dense)
    other = mh.Ragged(x.values, [0, 3, 7])
    refused(r"^d_out: expected a Ragged with the offsets of query", ValueError, other, cache)
    refused(r"^d_lse: expected a Ragged", TypeError, x, cache, d_lse=np.zeros((7, 4)))
    wide = mh.Ragged(np.zeros((7, 5)), x.offsets)
    refused(r"^d_lse: expected \(7, 4\), got \(7, 5\)", ValueError, x, cache, d_lse=wide)


def test_round_trips_of_sequences_with_heads(rng: np.random.Generator) -> None:
    some = parts(rng, [3, 0, 5], 2, 4)
    packed = mh.Ragged.from_list(some)
    assert repr(packed) == "Ragged(N=3, total=8, H=2, D=4, lengths=0 to 5)"
    assert packed.to_padded(-1.0).shape == (3, 5, 2, 4)
    for a, b in zip(packed, some, strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match=r"^sequences\[1\]: expected \(L, 2, 4\), got \(1, 2, 5\)"):
        mh.Ragged.from_list([some[0], np.zeros((1, 2, 5))])
