"""Ragged batches: each sequence as if it were alone, with no padding anywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import multihead as mh
from cases import WEIGHTS, Construction, layer_step, make_layer, oracle_step
from cases import Call as DenseCall
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, tolerance

DTYPES = ("float32", "float64")
EACH_SET = pytest.mark.usefixtures("isa")  # random lengths: the best set, and test_kernel_sets.py


def sequences(
    lengths: tuple[int, ...], width: int, dtype: str, rng: np.random.Generator
) -> list[np.ndarray]:
    return [rng.standard_normal((n, width)).astype(dtype) for n in lengths]


def check(
    how: Construction,
    lengths: tuple[int, ...],
    key_lengths: tuple[int, ...],
    rng: np.random.Generator,
    *,
    weights: str = "per head",
    is_causal: bool = False,
    mask: str = "none",
) -> None:
    """A ragged step equals the oracle on each sequence alone; parameter gradients add up."""
    layer = make_layer(how, rng)
    e, dtype = how.embed_dim, how.dtype
    queries, d_outs = sequences(lengths, e, dtype, rng), sequences(lengths, e, dtype, rng)
    keys, values = (sequences(key_lengths, d or e, dtype, rng) for d in (how.kdim, how.vdim))
    shape = (max(lengths), max(key_lengths))
    attn_mask = rng.random(shape) < 0.3 if mask == "bool" else None
    if mask == "float":
        attn_mask = rng.standard_normal(shape).astype(dtype)
    average, need = weights != "per head", weights != "none"
    heads = () if average else (how.num_heads,)
    d_weights = [
        rng.standard_normal((*heads, a, b + how.extra_keys)).astype(dtype)
        for a, b in zip(lengths, key_lengths, strict=True)
    ]
    options = {"need_weights": need, "average_attn_weights": average, "is_causal": is_causal}
    inputs = [mh.Ragged.from_list(x) for x in (queries, keys, values)]
    out, given = layer(*inputs, attn_mask=attn_mask, **options)
    *d_inputs, d_mask, _ = layer.backward(
        mh.Ragged.from_list(d_outs), d_weights if need else None, need_mask_grad=True
    )
    grads = dict(layer.grads)
    assert isinstance(out, mh.Ragged)
    assert all(isinstance(x, mh.Ragged) for x in d_inputs)

    forward, gradient = tolerance(FORWARD, dtype), tolerance(GRADIENT, dtype)
    total: dict[str, np.ndarray] = {}
    sizes: dict[str, float] = {}
    actual: dict[str, list[np.ndarray]] = {"out": out.to_list(), "weights": given}
    actual |= dict(zip(("query", "key", "value"), (x.to_list() for x in d_inputs), strict=True))
    expected: dict[str, list[np.ndarray]] = {name: [] for name in actual}
    for i, (q, k, v, d) in enumerate(zip(queries, keys, values, d_outs, strict=True)):
        cut = None if attn_mask is None else attn_mask[: len(q), : len(k)]
        call = DenseCall(
            q[None],
            k[None],
            v[None],
            d[None],
            options | {"attn_mask": cut},
            d_weights[i][None] if need else None,
        )
        step = oracle_step(layer.state_dict(), how, call)
        expected["out"].append(step.out[0])
        if need:
            expected["weights"].append(step.weights[0])
        for name in ("query", "key", "value"):
            expected[name].append(step.grads.pop(name)[0])
        sizes |= {name: max(size, sizes.get(name, 0)) for name, size in step.sizes.items()}
        if "attn_mask" in step.grads:
            full = np.zeros(shape)
            full[: len(q), : len(k)] = step.grads["attn_mask"]
            step.grads["attn_mask"] = full
        for name, x in step.grads.items():
            total[name] = total.get(name, 0) + x
    if not need:
        assert given is None
        del actual["weights"], expected["weights"]
    flat = [
        {name: np.concatenate([x.ravel() for x in parts]) for name, parts in side.items()}
        for side in (actual, expected)
    ]
    for name in set(actual) & {"out", "weights"}:
        assert [x.shape for x in actual[name]] == [x.shape for x in expected[name]]
        assert_close(flat[0].pop(name), flat[1].pop(name), forward, name)
    assert_all_close(*flat, gradient, sizes=sizes)
    assert (d_mask is None) == (mask != "float")
    if d_mask is not None:
        grads["attn_mask"] = d_mask
    assert_all_close(grads, total, gradient, sizes=sizes)


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dims", [(None, None), (5, 9)])
def test_each_sequence_is_alone(
    dims: tuple[int | None, int | None],
    weights: str,
    extras: bool,
    dtype: str,
    rng: np.random.Generator,
) -> None:
    how = Construction(
        add_bias_kv=extras, add_zero_attn=extras, kdim=dims[0], vdim=dims[1], dtype=dtype
    )
    for is_causal, mask in itertools.product((False, True), ("none", "bool", "float")):
        check(how, (5, 1, 9), (3, 7, 9), rng, weights=weights, is_causal=is_causal, mask=mask)


@EACH_SET
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "key_lengths"),
    [
        ((0, 3), (2, 2)),
        ((3, 2), (0, 2)),
        ((0,), (0,)),
        ((200, 1, 0, 65, 64), (3, 129, 7, 65, 300)),
        ((1,) * 40, (1,) * 40),
    ],
)
def test_awkward_lengths(
    lengths: tuple[int, ...], key_lengths: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    check(Construction(18, 2, dtype=dtype), lengths, key_lengths, rng)
    how = Construction(18, 2, dtype=dtype, add_bias_kv=True)
    check(how, lengths, key_lengths, rng, is_causal=True, weights="average")


@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
)
def test_random_lengths(lengths: list[tuple[int, int]], seed: int, dtype: str) -> None:
    queries, keys = zip(*lengths, strict=True)
    check(Construction(10, 2, dtype=dtype), queries, keys, np.random.default_rng(seed), mask="bool")


@EACH_SET
@pytest.mark.parametrize("layout", ["batch first", "sequence first"])
def test_self_attention_sums_to_the_padded_gradient(layout: str, rng: np.random.Generator) -> None:
    lengths = (6, 2, 9)
    layer = make_layer(Construction(layout=layout), rng)
    x = mh.Ragged.from_list(sequences(lengths, 12, "float64", rng))
    d_out = mh.Ragged.from_list(sequences(lengths, 12, "float64", rng))
    out, _ = layer(x, x, x)
    ragged = [grad.values for grad in layer.backward(d_out)]
    params = {name: grad.copy() for name, grad in layer.grads.items()}

    hides = np.arange(9) >= np.array(lengths)[:, None]
    dense, gradient = x.to_padded(0.0), d_out.to_padded(0.0)
    if layout == "sequence first":
        dense, gradient = dense.swapaxes(0, 1), gradient.swapaxes(0, 1)
    call = DenseCall(
        dense, dense, dense, gradient, {"key_padding_mask": hides, "need_weights": False}
    )
    step = layer_step(layer, call)
    bound = tolerance(GRADIENT, "float64")

    def real(y: np.ndarray) -> np.ndarray:
        return (y if layout == "batch first" else y.swapaxes(0, 1))[~hides]

    assert_close(out.values, real(step.out), bound, "out")
    for name, grad in zip(("query", "key", "value"), ragged, strict=True):
        assert_close(grad, real(step.grads.pop(name)), bound, name)
    assert_all_close(params, step.grads, bound)


@EACH_SET
def test_out_receives_the_gradients(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    x = mh.Ragged.from_list(sequences((4, 0, 7), 12, "float64", rng))
    out, _ = layer(x, x, x)
    cache = layer.cache
    expected = layer.backward(out, cache=cache)
    total = mh.Ragged(np.full_like(x.values, np.nan), x.offsets)
    given = layer.backward(out, cache=cache, out=(total, total, total))
    assert all(a is total for a in given)
    summed = sum(grad.values for grad in expected)
    assert_close(total.values, summed, tolerance(GRADIENT, "float64"), "sum")


def test_round_trips(rng: np.random.Generator) -> None:
    parts = sequences((3, 0, 5), 4, "float32", rng)
    ragged = mh.Ragged.from_list(parts)
    assert ragged.values.shape == (8, 4)
    np.testing.assert_array_equal(ragged.offsets, [0, 3, 3, 8])
    for a, b in zip(ragged.to_list(), parts, strict=True):
        np.testing.assert_array_equal(a, b)
    padded = ragged.to_padded(-1.0)
    assert padded.shape == (3, 5, 4)
    assert padded.dtype == np.float32
    for row, part in zip(padded, parts, strict=True):
        np.testing.assert_array_equal(row[: len(part)], part)
        assert (row[len(part) :] == -1).all()


@pytest.mark.parametrize(
    "offsets", [[0, 3], [1, 3, 8], [0, 9], [0, 5, 3, 8], [[0, 8]], [], [0.0, 8.0]]
)
def test_offsets_that_make_no_sense_are_refused(offsets: list[float]) -> None:
    with pytest.raises((ValueError, TypeError), match="offsets"):
        mh.Ragged(np.zeros((8, 4)), np.array(offsets))


def test_mixing_ragged_and_dense_is_refused(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    x = mh.Ragged.from_list(sequences((4, 7), 12, "float64", rng))
    dense = x.to_padded(0.0)
    with pytest.raises((ValueError, TypeError), match=r"key|value|query"):
        layer(x, dense, dense)
    with pytest.raises((ValueError, TypeError), match=r"key|value|query"):
        layer(dense, x, x)


def test_key_padding_mask_is_refused(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    x = mh.Ragged.from_list(sequences((4, 7), 12, "float64", rng))
    with pytest.raises((ValueError, TypeError), match="key_padding_mask"):
        layer(x, x, x, key_padding_mask=np.zeros((2, 7), bool))


def test_batches_of_other_sizes_are_refused(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    two = mh.Ragged.from_list(sequences((4, 7), 12, "float64", rng))
    three = mh.Ragged.from_list(sequences((4, 6, 1), 12, "float64", rng))
    with pytest.raises(ValueError, match="key"):
        layer(two, three, three)
    moved = mh.Ragged.from_list(sequences((5, 6), 12, "float64", rng))
    with pytest.raises(ValueError, match="value"):
        layer(two, two, moved)


@EACH_SET
def test_sequences_by_index_and_one_after_the_other(rng: np.random.Generator) -> None:
    parts = sequences((3, 0, 5, 2), 4, "float32", rng)
    batch = mh.Ragged.from_list(parts)
    for n in (*range(-4, 4), np.int64(2)):
        np.testing.assert_array_equal(batch[n], parts[n])
        assert np.shares_memory(batch[n], batch.values) == bool(len(parts[n]))
    assert [len(x) for x in batch] == [3, 0, 5, 2]
    for cut in (slice(1, 3), slice(None), slice(-1, None), slice(2, 2), slice(3, 1), slice(9, 12)):
        some = batch[cut]
        assert isinstance(some, mh.Ragged)
        assert len(some) == len(parts[cut])
        for a, b in zip(some, parts[cut], strict=True):
            np.testing.assert_array_equal(a, b)
    for index, error in ((4, IndexError), (-5, IndexError), (0.5, TypeError), ("a", TypeError)):
        with pytest.raises(error, match=r"^index: expected"):
            batch[index]
    with pytest.raises(ValueError, match=r"^index: expected a slice with a step of 1"):
        batch[::2]


@EACH_SET
def test_offsets_cannot_be_made_writable() -> None:
    given = np.array([0, 3, 8])
    given.flags.writeable = False
    batch = mh.Ragged(np.zeros((8, 4)), given)
    given.flags.writeable = True
    given[1] = 100
    assert batch.offsets.tolist() == [0, 3, 8]
    with pytest.raises(ValueError, match="WRITEABLE"):
        batch.offsets.flags.writeable = True
    assert mh.Ragged(batch.values, batch.offsets).offsets is batch.offsets
