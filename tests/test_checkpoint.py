"""Files that are no checkpoints of ours, and old ones that are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import multihead as mh


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(OSError, match=str(tmp_path)):
            mh.checkpoint.load(path)


def test_a_checkpoint_of_the_first_version_loads(tmp_path: Path) -> None:
    layer = mh.MultiheadAttention(4, 2, dropout=0.25, kdim=3, add_zero_attn=True, seed=9)
    options = {
        "embed_dim": 4,
        "num_heads": 2,
        "dropout": 0.25,
        "bias": True,
        "add_bias_kv": False,
        "add_zero_attn": True,
        "kdim": 3,
        "vdim": 4,
        "batch_first": False,
        "dtype": "float32",
    }
    note = json.dumps({"options": options, "rng_state": [9, 5]})
    path = tmp_path / "old.safetensors"
    safetensors.numpy.save_file(layer.state_dict(), path, metadata={"multihead": note})
    again = mh.checkpoint.load(path)
    later = {"num_kv_heads": 2, "head_dim": 2, "window": None, "softcap": None, "alibi": False}
    later |= {"rope": None, "sinks": False, "grad_dtype": "float32"}
    assert again.options() == options | later
    assert again.rng_state == (9, 5)
    memory = np.concatenate([x.ravel() for x in layer.parameters().values()])
    state: dict[str, Any] = {
        "options": options,
        "memory": memory,
        "grads": None,
        "rng_state": (9, 5),
        "training": False,
    }
    unpickled = mh.MultiheadAttention.__new__(mh.MultiheadAttention)
    unpickled.__setstate__(state)
    assert not unpickled.training
    for other in (again, unpickled):
        for name, array in layer.parameters().items():
            np.testing.assert_array_equal(other.parameters()[name], array)


@pytest.mark.parametrize("dtype", [int, np.uint16, np.complex64, bool, object])
def test_a_state_dict_of_no_floats_is_refused_and_changes_nothing(dtype: Any) -> None:
    layer = mh.MultiheadAttention(4, 2, seed=0)
    before = layer.state_dict()
    state = {name: np.ones(x.shape, x.dtype) for name, x in before.items()}
    state["out_proj.weight"] = np.ones((4, 4), dtype)
    with pytest.raises(TypeError, match=r"^out_proj\.weight: expected a floating array, got"):
        layer.load_state_dict(state)
    for name, x in layer.state_dict().items():
        np.testing.assert_array_equal(x, before[name])


@pytest.mark.parametrize("given", ["model.pt", Path("model.pt"), None, [("a", 1)], 3])
def test_a_state_dict_that_is_none_is_refused(given: Any) -> None:
    layer = mh.MultiheadAttention(4, 2, seed=0)
    with pytest.raises(TypeError, match=r"^state_dict: expected a mapping of names to arrays, got"):
        layer.load_state_dict(given)
