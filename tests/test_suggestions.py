"""Names that people write for ours: the error says which one is meant."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import multihead as mh

X = np.ones((4, 1, 8), np.float32)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("MultiHeadAttention", "MultiheadAttention"),
        ("MultiheadAttn", "MultiheadAttention"),
        ("set_threads", "set_num_threads"),
    ],
)
def test_of_the_package(given: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{given}'; did you mean '{meant}'"):
        getattr(mh, given)


def test_what_is_like_nothing_gets_no_suggestion() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        _ = mh.zzz
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        _ = mh.MultiheadAttention(8, 2).zzz


def test_of_a_layer() -> None:
    layer = mh.MultiheadAttention(8, 2)
    with pytest.raises(AttributeError, match=r"layer itself: layer\(query, key, value\)$"):
        layer.forward(X, X, X)
    with pytest.raises(AttributeError, match=r"did you mean 'num_heads'\?$"):
        _ = layer.num_head
    assert not hasattr(layer, "forward")
    copy.deepcopy(pickle.loads(pickle.dumps(layer)))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("key_dim", "kdim"),
        ("d_model", "embed_dim"),
        ("nhead", "num_heads"),
        ("add_bias_k", "add_bias_kv"),
        ("random_state", "seed"),
        ("num_key_value_heads", "num_kv_heads"),
        ("rope_scaling", "rope"),
    ],
)
def test_of_the_constructor(given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"argument '{given}'; did you mean '{meant}'\?$"):
        mh.MultiheadAttention(8, 2, **{given: 4})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("mask", "attn_mask"),
        ("causal", "is_causal"),
        ("key_mask", "key_padding_mask"),
        ("q", "query"),
    ],
)
def test_of_a_call(given: str, meant: str) -> None:
    layer = mh.MultiheadAttention(8, 2)
    with pytest.raises(TypeError, match=rf"argument '{given}'; did you mean '{meant}'\?$"):
        layer(X, X, X, **{given: None})
    assert layer.cache is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [("sliding_window", "window"), ("s_aux", "sinks"), ("nonpad_kv_seqlen", "key_lengths")],
)
def test_of_a_function(given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"argument '{given}'; did you mean '{meant}'\?$"):
        mh.functional.scaled_dot_product_attention(X, X, X, **{given: None})


def test_inputs_by_other_names_are_called_by_theirs() -> None:
    wrong: dict[str, Any] = {"q": X, "k": X, "v": X}
    with pytest.raises(TypeError, match="'query', 'key', and 'value'"):
        mh.MultiheadAttention(8, 2)(**wrong)


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.SeedSequence])
def test_seeds_come_from_numpy_too(make: Any) -> None:
    one, two = (mh.MultiheadAttention(8, 2, seed=make(5)) for _ in range(2))
    assert one.rng_state == two.rng_state
    np.testing.assert_array_equal(one.in_proj_weight, two.in_proj_weight)
    source = np.random.default_rng(5)
    first, second = (mh.MultiheadAttention(8, 2, seed=source) for _ in range(2))
    assert first.rng_state == one.rng_state or make is np.random.SeedSequence
    assert first.rng_state != second.rng_state
    outs = [
        mh.functional.scaled_dot_product_attention(X, X, X, None, 0.5, seed=make(7)) for _ in "ab"
    ]
    np.testing.assert_array_equal(*outs)


def test_importing_the_package_loads_no_random_numbers() -> None:
    import subprocess
    import sys

    code = "import sys, multihead; print('numpy.random' in sys.modules, 'difflib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "False"]
