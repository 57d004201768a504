"""What a layer holds between calls: parameters, gradients, mode, copies and checkpoints."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import multihead as mh
from cases import Construction, layer_step, make_call, make_layer

CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "kdim": 5, "vdim": 9},
    {"add_bias_kv": True, "add_zero_attn": True, "dropout": 0.5, "layout": "sequence first"},
]


def copies(layer: mh.MultiheadAttention, folder: Path) -> dict[str, mh.MultiheadAttention]:
    """The layer by every way to copy it."""
    mh.checkpoint.save(layer, folder / "layer.safetensors")
    return {
        "deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),
        "checkpoint": mh.checkpoint.load(folder / "layer.safetensors"),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_copies_continue_where_the_layer_was(
    configuration: dict[str, Any], dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    how = Construction(dtype=dtype, **configuration)
    layer, call = make_layer(how, rng), make_call(how, rng, weights="average")
    layer_step(layer, call)
    layer.zero_grad()
    others = copies(layer, tmp_path)
    expected = layer_step(layer, call)
    for name, other in others.items():
        actual = layer_step(other, call)
        np.testing.assert_array_equal(actual.out, expected.out, err_msg=name)
        np.testing.assert_array_equal(actual.weights, expected.weights, err_msg=name)
        for key, grad in expected.grads.items():
            np.testing.assert_array_equal(actual.grads[key], grad, err_msg=f"{name}, {key}")
        assert other.rng_state == layer.rng_state
        assert repr(other) == repr(layer)


def test_copies_are_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    before = layer.state_dict()
    for other in copies(layer, tmp_path).values():
        for x in other.parameters().values():
            x.fill(1)
    for name, x in layer.parameters().items():
        np.testing.assert_array_equal(x, before[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints(dtype: str, tmp_path: Path) -> None:
    layer = mh.MultiheadAttention(12, 3, dtype=dtype, seed=1)
    other = copies(layer, tmp_path)["checkpoint"]
    assert other.dtype == dtype
    for name, x in layer.state_dict().items():
        np.testing.assert_array_equal(x.view(np.uint16), other.state_dict()[name].view(np.uint16))


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="path"):
        mh.checkpoint.load(path)
    safetensors.numpy.save_file({"in_proj_weight": np.zeros((3, 1))}, path)
    with pytest.raises(ValueError, match="path"):
        mh.checkpoint.load(path)
    with pytest.raises(OSError, match="nowhere"):
        mh.checkpoint.load(tmp_path / "nowhere")


def test_a_state_dict_is_a_copy_and_parameters_are_not(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    before = layer.out_proj.weight.copy()
    layer.state_dict()["out_proj.weight"].fill(0)
    np.testing.assert_array_equal(layer.out_proj.weight, before)
    layer.parameters()["out_proj.weight"][...] = 2
    assert (layer.out_proj.weight == 2).all()


def test_updates_in_place_are_seen(rng: np.random.Generator) -> None:
    how = Construction()
    layer, call = make_layer(how, rng), make_call(how, rng)
    before, _ = layer(call.query, call.key, call.value)
    for x in layer.parameters().values():
        x *= 2
    fresh = make_layer(how, rng)
    fresh.load_state_dict(layer.state_dict())
    after, _ = layer(call.query, call.key, call.value)
    np.testing.assert_array_equal(after, fresh(call.query, call.key, call.value)[0])
    assert (after != before).any()


def test_assigning_copies_into_a_parameter(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    bias = np.arange(36.0)
    layer.in_proj_bias = bias
    bias.fill(0)
    np.testing.assert_array_equal(layer.in_proj_bias, np.arange(36.0))
    with pytest.raises(ValueError, match=r"in_proj_bias.*\(36,\).*\(12,\)"):
        layer.in_proj_bias = np.zeros(12)
    with pytest.raises(ValueError, match="bias_k"):
        layer.bias_k = np.zeros((1, 1, 12))


@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("target", ["float16", "bfloat16", "float32", "float64"])
def test_state_dicts_are_cast(source: str, target: str) -> None:
    kinds = {
        name: np.dtype(getattr(ml_dtypes if name == "bfloat16" else np, name))
        for name in (source, target)
    }
    state = mh.MultiheadAttention(12, 3, dtype=source, seed=2).state_dict()
    layer = mh.MultiheadAttention(12, 3, dtype=target)
    layer.load_state_dict(state)
    for name, x in layer.state_dict().items():
        expected = state[name].astype(np.float64).astype(kinds[target])
        np.testing.assert_array_equal(x.astype(np.float64), expected.astype(np.float64))


def test_modes(rng: np.random.Generator) -> None:
    layer = make_layer(Construction(), rng)
    x = rng.standard_normal((2, 5, 12))
    assert layer.training
    layer(x, x, x)
    assert layer.cache is not None
    assert layer.eval() is layer
    assert not layer.training
    layer(x, x, x)
    assert layer.cache is None
    assert layer.train() is layer
    assert layer.training
    assert not layer.train(False).training


def test_eval_and_training_without_dropout_agree(rng: np.random.Generator) -> None:
    how = Construction(dtype="float32")
    layer, call = make_layer(how, rng), make_call(how, rng, 2, 70, 90, weights="average")
    out, weights = layer(call.query, call.key, call.value, **call.options)
    layer.eval()
    again, same = layer(call.query, call.key, call.value, **call.options)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(weights, same)


def test_weights_do_not_change_the_output(rng: np.random.Generator) -> None:
    how = Construction(dtype="float32", dropout=0.3)
    layer, call = make_layer(how, rng), make_call(how, rng, 2, 70, 90, padding="bool")
    state, outs = layer.rng_state, []
    padding = call.options["key_padding_mask"]
    for options in (
        {"need_weights": False},
        {"need_weights": True},
        {"average_attn_weights": False},
    ):
        layer.rng_state = state
        inputs = (call.query, call.key, call.value, padding)
        outs.append(layer(*inputs, **options)[0])
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])
