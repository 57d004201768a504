"""Dropout: the mask of the specification, drawn once, the same in backward."""

from __future__ import annotations

import numpy as np
import pytest

import multihead as mh
from cases import Construction, layer_step, make_call, make_layer
from multihead import reference
from tolerance import FORWARD, assert_close, tolerance

pytestmark = pytest.mark.usefixtures("isa")

PROBABILITIES = [0.001, 0.1, 0.25, 0.5, 0.9, 0.99999]


def kept(layer: mh.MultiheadAttention, length: int, s: int, rng: np.random.Generator) -> np.ndarray:
    """Which weights of a call survive, (N, H, L, S')."""
    dtype = layer.parameters()["out_proj.weight"].dtype
    query, key = (rng.standard_normal((2, n, layer.embed_dim)).astype(dtype) for n in (length, s))
    _, weights = layer(query, key, key, average_attn_weights=False)
    return weights > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize(("length", "s"), [(5, 7), (1, 70), (130, 263)])
def test_the_mask_is_exactly_the_oracles(
    length: int, s: int, p: float, dtype: str, rng: np.random.Generator
) -> None:
    layer = make_layer(Construction(6, 3, dropout=p, dtype=dtype), rng)
    for state in [(0, 0), (2**64 - 1, 2**64 - 2), (123456789123, 2**33 + 5)]:
        layer.rng_state = state
        expected, _ = reference.dropout_mask(*state, range(2), range(3), range(length), range(s), p)
        np.testing.assert_array_equal(kept(layer, length, s, rng), expected)


@pytest.mark.parametrize("bias_kv", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_extra_keys_have_their_own_places(
    zero: bool, bias_kv: bool, rng: np.random.Generator
) -> None:
    how = Construction(6, 3, dropout=0.5, add_bias_kv=bias_kv, add_zero_attn=zero)
    layer = make_layer(how, rng)
    seed, counter = layer.rng_state
    keys = [*range(9)] + [0xFFFFFFFE] * bias_kv + [0xFFFFFFFF] * zero
    expected, _ = reference.dropout_mask(seed, counter, range(2), range(3), range(70), keys, 0.5)
    np.testing.assert_array_equal(kept(layer, 70, 9, rng), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_mask_has_the_mean_and_variance_of_coins(p: float) -> None:
    draws = np.stack(
        [
            reference.dropout_mask(s, c, 0, [0, 1], range(64), range(64), p)[0]
            for s in range(8)
            for c in range(8)
        ]
    ).reshape(64, 2, 64, 64)
    keep = 1 - p
    bound = 5 * np.sqrt(p * keep / draws.size)  # five standard deviations
    assert abs(draws.mean() - keep) < bound + 2**-16
    for axis in range(4):
        means = draws.mean(tuple(a for a in range(4) if a != axis))
        ratio = means.var() / (p * keep / (draws.size / draws.shape[axis]))
        assert ratio < 1 + 6 * np.sqrt(2 / max(means.size - 1, 1)), axis
    centred = draws - draws.mean()
    for lag in (1, 2, 3, 8, 16):
        for axis in (0, 2, 3):
            ahead, behind = (np.take(centred, r, axis) for r in (range(lag, 64), range(64 - lag)))
            assert abs((ahead * behind).mean()) < bound * np.sqrt(p * keep) * 2, (axis, lag)


def test_the_layers_mask_has_the_mean_of_coins(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(8, 2, dropout=0.3), rng)
    draws = np.stack([kept(layer, 40, 50, rng) for _ in range(20)])
    assert abs(draws.mean() - 0.7) < 5 * np.sqrt(0.21 / draws.size)
    assert (draws[0] != draws[1]).mean() == pytest.approx(0.42, abs=0.03)


def test_survivors_are_scaled_so_that_the_mean_stays(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(8, 2, dropout=0.25), rng)
    x = rng.standard_normal((1, 6, 8))
    outs = [layer(x, x, x)[0] for _ in range(4000)]
    layer.eval()
    expected = layer(x, x, x)[0]
    spread = np.std(outs, 0) / np.sqrt(len(outs))
    assert (np.abs(np.mean(outs, 0) - expected) < 5 * spread).all()


@pytest.mark.parametrize("padding", ["leading", "trailing", "scattered"])
def test_padding_does_not_move_the_mask(padding: str, rng: np.random.Generator) -> None:
    layer = make_layer(Construction(6, 3, dropout=0.4), rng)
    state = layer.rng_state
    x = rng.standard_normal((2, 90, 6))
    hides = np.zeros((2, 90), bool)
    where = {"leading": slice(0, 33), "trailing": slice(40, 90), "scattered": slice(1, 90, 3)}
    hides[:, where[padding]] = True
    _, plain = layer(x, x, x, average_attn_weights=False)
    layer.rng_state = state
    _, padded = layer(x, x, x, key_padding_mask=hides, average_attn_weights=False)
    visible = np.broadcast_to(~hides[:, None, None], plain.shape)
    np.testing.assert_array_equal((padded > 0)[visible], (plain > 0)[visible])
    assert not padded[~visible].any()


def test_padded_and_ragged_draw_the_same_mask(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(6, 3, dropout=0.4), rng)
    state = layer.rng_state
    lengths = (5, 0, 70, 31)
    sequences = [rng.standard_normal((n, 6)) for n in lengths]
    ragged = mh.Ragged.from_list(sequences)
    _, rows = layer(ragged, ragged, ragged, average_attn_weights=False)
    layer.rng_state = state
    padded = ragged.to_padded(0.0)
    hides = np.arange(70) >= np.array(lengths)[:, None]
    _, weights = layer(padded, padded, padded, key_padding_mask=hides, average_attn_weights=False)
    for n, row, full in zip(lengths, rows, weights, strict=True):
        assert_close(row, full[:, :n, :n], tolerance(FORWARD, "float64"), "weights")
        np.testing.assert_array_equal(row > 0, full[:, :n, :n] > 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_dropped_leaves_the_bias(dtype: str, rng: np.random.Generator) -> None:
    how = Construction(6, 3, dropout=1.0, dtype=dtype)
    layer, call = make_layer(how, rng), make_call(how, rng, weights="average")
    step = layer_step(layer, call)
    assert not step.weights.any()
    np.testing.assert_array_equal(step.out, np.broadcast_to(layer.out_proj.bias, step.out.shape))
    assert all(not step.grads[name].any() for name in ("query", "key", "value", "in_proj_weight"))
    assert step.grads["out_proj.bias"].any()


def test_nothing_dropped_draws_nothing(rng: np.random.Generator) -> None:
    how = Construction(6, 3, dropout=0.0)
    layer, call = make_layer(how, rng), make_call(how, rng)
    before = layer.rng_state
    layer(call.query, call.key, call.value)
    assert layer.rng_state == before


def test_eval_drops_nothing(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(6, 3, dropout=0.5), rng)
    layer.eval()
    before = layer.rng_state
    assert kept(layer, 9, 9, rng).all()
    assert layer.rng_state == before
    assert layer.cache is None


def test_the_counter_grows_by_one_a_training_call(rng: np.random.Generator) -> None:
    how = Construction(6, 3, dropout=0.5)
    layer, call = make_layer(how, rng), make_call(how, rng)
    seed, counter = layer.rng_state
    layer(call.query, call.key, call.value)
    layer.backward(call.d_out)
    assert layer.rng_state == (seed, counter + 1)


def test_setting_the_state_repeats_the_draw(rng: np.random.Generator) -> None:
    how = Construction(6, 3, dropout=0.5)
    layer, call = make_layer(how, rng), make_call(how, rng)
    state = layer.rng_state
    first = layer(call.query, call.key, call.value)[0]
    second = layer(call.query, call.key, call.value)[0]
    layer.rng_state = state
    np.testing.assert_array_equal(layer(call.query, call.key, call.value)[0], first)
    assert (first != second).any()


def test_backward_uses_the_mask_of_its_own_forward(rng: np.random.Generator) -> None:
    how = Construction(6, 3, dropout=0.5)
    layer, call = make_layer(how, rng), make_call(how, rng)
    layer(call.query, call.key, call.value)
    cache = layer.cache
    expected = layer.backward(call.d_out, cache=cache)
    layer(call.key, call.key, call.value)
    layer.rng_state = (1, 2)
    for a, b in zip(layer.backward(call.d_out, cache=cache), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_seed_fixes_initialisation_and_dropout() -> None:
    one, two, other = (mh.MultiheadAttention(8, 2, dropout=0.5, seed=s) for s in (7, 7, 8))
    for name, x in one.state_dict().items():
        np.testing.assert_array_equal(x, two.state_dict()[name])
    assert (one.in_proj_weight != other.in_proj_weight).any()
    assert one.rng_state == two.rng_state != other.rng_state
