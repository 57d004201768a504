"""Rotary positions: angles as Hugging Face's models have them, and turning alone."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import multihead as mh
from differences import central_difference
from multihead.rope_scaling import turns
from tolerance import CENTRAL_DIFFERENCES, assert_close

TRAINED = {"original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0, **TRAINED},
    "yarn": {"factor": 4.0, **TRAINED},
    "yarn, all of it": {
        "factor": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.9,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
        **TRAINED,
    },
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **TRAINED},
    "longrope": {
        "short_factor": np.linspace(1, 2, 16).tolist(),
        "long_factor": np.linspace(2, 9, 16).tolist(),
        "factor": 4.0,
        **TRAINED,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [50, 300])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_angles_are_hugging_faces(name: str, base: float, length: int) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = {"rope_type": name.partition(",")[0], "rope_theta": base, **SCALINGS[name]}
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=64 if name == "dynamic" else 256,
        rope_parameters=dict(scaling),
    )
    theirs = LlamaRotaryEmbedding(config)
    cosine, sine = theirs(torch.zeros(1, length, 64), torch.arange(length)[None])
    frequencies, factor = turns(base, 32, length, scaling)
    inverse = theirs.inv_freq.numpy()
    assert np.abs(frequencies - inverse).max(initial=0) <= 0 or np.all(
        np.abs(frequencies - inverse) <= 2 * np.spacing(inverse)
    )
    assert factor == theirs.attention_scaling
    angles = mh.Rope(scaling=scaling).angles(32, length, "float32")
    # a last bit of a frequency is one of every angle
    bound = 2 * np.spacing(np.float32(length)) * factor + 2e-7
    for ours, other in ((angles.cosine, cosine), (angles.sine, sine)):
        assert np.abs(ours[:, :length].T - other[0, :, :16].numpy()).max() <= bound


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dims", [None, 6])
def test_the_product_depends_on_the_distance(
    dims: int | None, layout: Any, rng: np.random.Generator
) -> None:
    rope = mh.Rope(100.0, dims, layout)
    q, k = rng.normal(size=(2, 1, 10))
    products = [
        np.vdot(mh.functional.rotate(q, rope, [7 + i]), mh.functional.rotate(k, rope, [3 + i]))
        for i in (0, 1, 50)
    ]
    assert_close(np.array(products[1:]), np.full(2, products[0]), 1e-6)
    assert abs(products[0] - np.vdot(q, k)) > 1e-3
    kept = mh.functional.rotate(q, rope, [7])[0, dims or 10 :]
    assert np.array_equal(kept, q[0, dims or 10 :])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_the_gradient_is_a_difference(layout: Any, rng: np.random.Generator) -> None:
    rope, positions = mh.Rope(50.0, 4, layout), np.array([[3, 0, 9], [1, 1, 2]])
    x, d_out = rng.normal(size=(2, 2, 3, 6)), rng.normal(size=(2, 2, 3, 6))
    numeric = central_difference(
        lambda: float((mh.functional.rotate(x, rope, positions[:, None]) * d_out).sum()), x
    )
    found = mh.functional.rotate_backward(d_out, rope, positions[:, None])
    assert_close(found, numeric, CENTRAL_DIFFERENCES)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_dtype_stays(dtype: str, rng: np.random.Generator) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    x = rng.normal(size=(5, 8)).astype(kind)
    turned = mh.functional.rotate(x, mh.Rope())
    assert turned.dtype == x.dtype
    expected = mh.functional.rotate(x.astype(np.float64), mh.Rope())
    bound = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6}[dtype]
    assert_close(turned, expected, bound)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_a_table_of_ones_own(layout: Any, rng: np.random.Generator) -> None:
    angles = np.outer(np.arange(20), [1.0, 0.1, 0.01])
    both = np.concatenate([angles, angles], 1) if layout == "half" else np.repeat(angles, 2, 1)
    x = rng.normal(size=(20, 8))
    narrow = mh.Rope.from_table(np.cos(angles), np.sin(angles), layout)
    wide = mh.Rope.from_table(np.cos(both), np.sin(both), layout)
    assert narrow == wide
    assert narrow.pairs(8) == 3
    turned = mh.functional.rotate(x, narrow)
    assert np.array_equal(turned, mh.functional.rotate(x, pickle.loads(pickle.dumps(wide))))
    a, b = (0, 3) if layout == "half" else (0, 1)
    expected = x[:, a] * np.cos(angles[:, 0]) - x[:, b] * np.sin(angles[:, 0])
    assert_close(turned[:, a], expected, 1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mh.Rope(base=0), "base: expected a number above 0"),
        (lambda: mh.Rope(dims=5), "dims: expected an even number"),
        (lambda: mh.Rope(layout="llama"), "layout: expected 'half' or 'interleaved'"),
        (lambda: mh.Rope(scaling={"rope_type": "su"}), "rope_type"),
        (lambda: mh.Rope(dims=8, scaling={"rope_type": "yarn", "factor": 2.0}), "original_max"),
        (lambda: mh.Rope(scaling="yarn"), "scaling: expected a mapping"),
        (lambda: mh.Rope.from_table([1.0], [0.0]), "cosine, sine: expected two arrays"),
        (lambda: mh.functional.rotate(np.ones((3, 4)), 1.0), "rope: expected a Rope"),
        (lambda: mh.functional.rotate(np.ones((3, 4)), mh.Rope(), [0, 1]), "positions"),
        (lambda: mh.functional.rotate(np.ones((3, 4)), mh.Rope(), [0, -1, 1]), "positions"),
        (lambda: mh.functional.rotate(np.ones(4), mh.Rope()), r"x: expected \(\.\.\., L, D\)"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_tables_grow_and_are_kept() -> None:
    rope = mh.Rope()
    first = rope.angles(8, 10, "float32")
    assert rope.angles(8, 100, "float32") is first
    longer = rope.angles(8, 3000, "float32")
    assert longer.cosine.shape[1] >= 3000
    assert np.array_equal(longer.cosine[:, :100], first.cosine[:, :100])
