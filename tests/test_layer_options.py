"""The layer's options beyond torch's: grouped heads, windows, caps, ALiBi, sinks, rotation."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multihead as mh
from differences import central_difference
from layer_options import Drawn, draw, oracle
from magnitudes import magnitudes
from multihead import reference
from tolerance import CANCELLED, CENTRAL_DIFFERENCES, FORWARD, GRADIENT, assert_close, tolerance


def step(drawn: Drawn, rng: np.random.Generator) -> tuple[dict[str, Any], ...]:
    """What the layer and the oracle make of one step, by name, and how large it might be."""
    layer = drawn.layer
    expected = oracle(drawn, layer.rng_state)
    out, weights = layer(*drawn.inputs, average_attn_weights=False, **drawn.options)
    d_out, d_weights = (rng.normal(size=x.shape).astype(x.dtype) for x in (out, weights))
    three = layer.backward(d_out, d_weights)
    names = ("out", "weights", "query", "key", "value")
    found = dict(zip(names, (out, weights, *three), strict=True))
    grads = reference.layer.backward(expected, d_out.astype(float), d_weights.astype(float))
    wanted = {"out": expected.out, "weights": expected.weights, **grads}
    sizes = magnitudes(expected, d_out.astype(float), d_weights.astype(float))
    return found | layer.grads, wanted, {name: CANCELLED * size for name, size in sizes.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("draws", range(6))
@pytest.mark.usefixtures("isa")
def test_all_at_once(draws: int, dtype: str, rng: np.random.Generator) -> None:
    drawn = draw(rng, dtype, 200 if dtype == "float64" else 120)
    found, wanted, sizes = step(drawn, rng)
    for name, x in found.items():
        bound = tolerance(FORWARD if name in ("out", "weights") else GRADIENT, dtype)
        assert_close(x, wanted[name], bound, f"{name} {drawn.made}", scale=sizes.get(name, 0.0))


@pytest.mark.parametrize("draws", range(10))
def test_gradients_are_differences(draws: int, rng: np.random.Generator) -> None:
    drawn = draw(rng, "float64", 5)
    layer, state = drawn.layer, drawn.layer.rng_state
    found = [layer(*drawn.inputs, average_attn_weights=False, **drawn.options)]
    d_out, d_weights = (rng.normal(size=x.shape) for x in found[0])
    grads = dict(zip(("query", "key", "value"), layer.backward(d_out, d_weights), strict=True))
    if drawn.one_input:
        grads = {"query": sum(grads.values())}
    grads |= layer.grads
    variables = dict(zip(("query", "key", "value"), drawn.inputs, strict=True))
    variables |= layer.parameters()

    def loss() -> float:
        layer.rng_state = state
        out, weights = layer(*drawn.inputs, average_attn_weights=False, **drawn.options)
        return float((out * d_out).sum() + (weights * d_weights).sum())

    largest = max(float(np.abs(grad).max()) for grad in grads.values())
    for name, grad in grads.items():
        numeric = central_difference(loss, variables[name])
        note = f"d_{name} {drawn.made}"
        assert_close(grad, numeric, CENTRAL_DIFFERENCES, note, scale=1e-3 * largest)


@pytest.mark.parametrize("extra", ["", "add_zero_attn", "kv_cache"])
@pytest.mark.usefixtures("isa")
def test_an_average_has_the_slope_of_each_head(extra: str, rng: np.random.Generator) -> None:
    zero = extra == "add_zero_attn"
    how = {"alibi": True, "dtype": "float64", "batch_first": True, "seed": 0}
    layer = mh.MultiheadAttention(12, 3, add_zero_attn=zero, **how).eval()
    x = rng.standard_normal((2, 70, 12))
    cache = {"kv_cache": layer.new_kv_cache(2, 70)} if extra == "kv_cache" else {}
    _, average = layer(x, x, x, **cache)
    _, each = layer(x, x, x, average_attn_weights=False)
    assert_close(average, each.mean(1), tolerance(FORWARD, "float64"))


def test_gradients_of_sinks_add_up(rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(8, 4, sinks=True, dtype="float64", seed=0)
    x, d_out = rng.normal(size=(2, 3, 5, 8))
    found = []
    for _ in range(2):
        layer(x, x, x, need_weights=False)
        layer.backward(d_out)
        found.append(layer.grads["sinks"].copy())
    assert found[0].any()
    assert np.array_equal(found[1], 2 * found[0])


def test_rows_after_the_keys_have_no_position_whatever_scales_the_angles(
    rng: np.random.Generator,
) -> None:
    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
    made: dict[str, Any] = {"embed_dim": 12, "num_heads": 3, "add_bias_kv": True}
    made |= {"rope": mh.Rope(scaling=scaling), "add_zero_attn": True, "window": None}
    made |= {"softcap": None, "alibi": False, "dropout": 0.0}
    layer = mh.MultiheadAttention(**made, batch_first=True, dtype="float64", seed=0)
    x = rng.normal(size=(2, 7, 12))
    found, wanted, _ = step(Drawn(layer, made, (x, x, x), {"is_causal": True}), rng)
    for name, array in found.items():
        assert_close(array, wanted[name], tolerance(GRADIENT, "float64"), name)


@pytest.mark.parametrize("draws", range(6))
def test_threads_change_no_bits(draws: int, rng: np.random.Generator) -> None:
    drawn = draw(rng, "float32", 300, dropout=0.0)
    layer, before = drawn.layer, mh.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            mh.set_num_threads(threads)
            layer.zero_grad()
            out, weights = layer(*drawn.inputs, **drawn.options)
            three = layer.backward(out, weights)
            results.append([x.copy() for x in (out, weights, *three, *layer.grads.values())])
    finally:
        mh.set_num_threads(before)
    for others in results[1:]:
        assert all(map(np.array_equal, results[0], others))


@pytest.mark.parametrize("draws", range(6))
def test_a_ragged_batch_has_the_bits_of_its_sequences(draws: int, rng: np.random.Generator) -> None:
    drawn = draw(rng, "float32", 40, dropout=0.0)
    layer = drawn.layer.eval()
    causal = drawn.options["is_causal"]
    lengths = rng.integers(1, 150, 4)
    widths = (layer.embed_dim, layer.kdim, layer.vdim)
    parts = [[rng.normal(size=(n, w)).astype("float32") for n in lengths] for w in widths]
    query, key, value = (mh.Ragged.from_list(x) for x in parts)
    out, weights = layer(query, key, value, is_causal=causal)
    for i, (q, k, v) in enumerate(zip(*parts, strict=True)):
        one, w = layer(q, k, v, is_causal=causal)
        assert np.array_equal(out.to_list()[i], one)
        assert np.array_equal(weights[i], w)


def test_a_padded_batch_turns_keys_where_they_stand(rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(12, 3, rope=mh.Rope(), dtype="float64", batch_first=True, seed=0)
    x = rng.normal(size=(2, 9, 12))
    padding = np.zeros((2, 9), bool)
    padding[0, :4] = padding[1, 6] = True
    out, _ = layer.eval()(x, x, x, key_padding_mask=padding)
    mask = np.where(padding, -np.inf, 0.0)[:, None, None]
    expected, _ = layer(x, x, x, attn_mask=np.broadcast_to(mask, (2, 1, 9, 9)))
    assert_close(out, expected, 1e-13)


def test_the_state_dict_says_what_is_grouped() -> None:
    layer = mh.MultiheadAttention(10, 4, num_kv_heads=2, head_dim=6, sinks=True, add_bias_kv=True)
    shapes = {name: x.shape for name, x in layer.state_dict().items()}
    assert shapes == {
        "q_proj_weight": (24, 10),
        "k_proj_weight": (12, 10),
        "v_proj_weight": (12, 10),
        "in_proj_bias": (48,),
        "bias_k": (1, 1, 12),
        "bias_v": (1, 1, 12),
        "sinks": (4,),
        "out_proj.weight": (10, 24),
        "out_proj.bias": (10,),
    }
    assert not layer.sinks.any()
    same = mh.MultiheadAttention(12, 3, num_kv_heads=3, head_dim=4)
    assert "in_proj_weight" in same.state_dict()  # all three are (E, E)


SHORT_ALONE = {
    "rope_type": "longrope",
    "short_factor": [1.0],
    "original_max_position_embeddings": 64,
}
OPTIONS: dict[str, Any] = {
    "num_kv_heads": 2,
    "head_dim": 6,
    "window": (5, None),
    "softcap": 3.0,
    "alibi": True,
    "sinks": True,
    "rope": mh.Rope(500.0, 4, "interleaved", {"rope_type": "linear", "factor": 2.0}),
}


def test_options_are_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("safetensors")
    layer = mh.MultiheadAttention(10, 4, **OPTIONS, seed=1, batch_first=True).eval()
    x = rng.normal(size=(2, 7, 10)).astype("float32")
    expected = layer(x, x, x)[0]
    assert all(getattr(layer, name) == OPTIONS[name] for name in OPTIONS if name != "sinks")
    mh.checkpoint.save(layer, tmp_path / "layer")
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert np.array_equal(again(x, x, x)[0], expected)
        assert repr(again) == repr(layer)
    loaded = mh.checkpoint.load(tmp_path / "layer").eval()
    assert loaded.options() == layer.options()
    assert np.array_equal(loaded(x, x, x)[0], expected)


def test_the_repr_shows_what_is_not_the_default() -> None:
    layer = mh.MultiheadAttention(8, 2, num_kv_heads=1, window=3, rope=mh.Rope(100.0))
    expected = "MultiheadAttention(embed_dim=8, num_heads=2, num_kv_heads=1, window=(3, 3), "
    assert repr(layer) == expected + "rope=Rope(base=100.0))"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_heads": 3}, r"num_kv_heads: expected a divisor of num_heads = 4, got 3"),
        ({"num_kv_heads": 0}, r"num_kv_heads: expected an integer >= 1|num_kv_heads"),
        ({"head_dim": 0}, r"head_dim"),
        ({"embed_dim": 10}, r"embed_dim: expected a multiple of num_heads = 4, or head_dim="),
        ({"window": -1}, r"window\[0\]"),
        ({"softcap": -1.0}, r"softcap: expected None or a number above 0"),
        ({"head_dim": 3, "rope": mh.Rope()}, r"rope: expected an even head_dim, or dims="),
        ({"rope": mh.Rope(dims=6)}, r"rope: expected at most head_dim = 2 features to turn"),
        ({"alibi": "yes"}, r"alibi: expected"),
        ({"rope": mh.Rope(scaling={"rope_type": "llama3"})}, r"scaling: expected 'factor'"),
        (
            {"rope": mh.Rope(scaling=SHORT_ALONE)},
            r"scaling: expected 'long_factor' in a scaling of rope_type 'longrope'",
        ),
        ({"rope": 10000.0}, r"rope: expected a Rope, a table \(cos, sin\) or None"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        mh.MultiheadAttention(**{"embed_dim": 8, "num_heads": 4, **options})


def test_a_table_that_is_too_short_is_refused(rng: np.random.Generator) -> None:
    angles = np.outer(np.arange(6), [1.0, 0.1])
    layer = mh.MultiheadAttention(8, 2, rope=(np.cos(angles), np.sin(angles)), dtype="float64")
    x = rng.normal(size=(7, 8))
    layer(x[:6], x[:6], x[:6])
    with pytest.raises(ValueError, match="rope: expected angles of 7 positions, got 6"):
        layer(x, x, x)
