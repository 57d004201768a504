"""What is wrong with a call in JAX is said before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scripts import printed

jax = pytest.importorskip("jax")

from jax_calls import drawn  # noqa: E402
from multihead.jax import dot_product_attention  # noqa: E402

SIZES = (2, 5, 7, 4, 2, 3, 2)  # N, L, S, H, Hk, D, Dv


def inputs() -> tuple[Any, ...]:
    return drawn(np.random.default_rng(61), SIZES)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"query": np.ones((2, 5, 4), np.int32)}, TypeError, "query: .*float32.*got int32"),
        ({"query": np.ones((5, 3), np.float32)}, ValueError, r"query: .*got \(5, 3\)"),
        ({"key": np.ones((2, 7, 2, 4), np.float32)}, ValueError, r"key: expected \(2, S, Hk, 3\)"),
        ({"key": np.ones((2, 7, 3, 3), np.float32)}, ValueError, "key: .*divides 4, got 3"),
        ({"key": np.ones((2, 7, 2, 3), np.float16)}, TypeError, "key: .*float32.*got float16"),
        ({"value": np.ones((2, 6, 2, 2), np.float32)}, ValueError, r"value: expected \(2, 7, 2"),
        ({"bias": np.ones((4, 5, 6))}, ValueError, r"bias: .*\(2, 4, 5, 7\), got \(4, 5, 6\)"),
        ({"bias": np.ones((5, 7), bool)}, TypeError, "bias: expected floats, got bool"),
        ({"mask": np.ones((2, 5, 7), bool)}, ValueError, r"mask\[:, None\] fits"),
        ({"mask": np.ones((5, 7))}, TypeError, r"mask: .*mask != 0 if 1 means keep"),
        ({"sinks": np.ones(3)}, ValueError, r"sinks: expected \(4,\), got \(3,\)"),
        ({"alibi_slopes": np.ones((3, 4))}, ValueError, r"alibi_slopes: .*got \(3, 4\)"),
        ({"window": (1, 2, 3)}, ValueError, r"window: expected \(left, right\)"),
        ({"window": 1, "local_window_size": 1}, ValueError, "local_window_size: .*beside window"),
        ({"scale": jax.numpy.ones(2)}, ValueError, r"scale: .*shape \(\), got \(2,\)"),
        ({"scale": jax.numpy.array(True)}, TypeError, "scale: .*got bool"),
        ({"softcap": -1.0}, ValueError, "softcap: .*got -1.0"),
        ({"query_offset": "start"}, ValueError, "query_offset: "),
        ({"key_lengths": np.ones(3, np.int32)}, ValueError, r"key_lengths: expected \(2,\)"),
        ({"key_lengths": np.ones(2)}, TypeError, "key_lengths: expected integers"),
        ({"dropout_p": 1.5}, ValueError, "dropout_p: .*got 1.5"),
        ({"dropout_p": 0.5}, ValueError, r"dropout_key: .*jax.random.key\(0\)"),
        ({"dropout_p": 0.5, "dropout_key": np.ones(2)}, TypeError, "dropout_key: .*a key"),
        ({"is_causal": "yes"}, TypeError, "is_causal: expected True or False"),
        ({"implementation": "cudnn"}, ValueError, 'implementation: .*"xla"'),
    ],
)
def test_arguments_that_do_not_fit(
    change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    given = dict(zip(("query", "key", "value"), inputs(), strict=True)) | change
    with pytest.raises(kind, match=message):
        jax.eval_shape(lambda: dot_product_attention(**given))


@pytest.mark.parametrize(
    ("some", "message"),
    [
        ({"key_lengths": np.array([8, 1])}, "key_lengths: expected from 0 to 7, got 8"),
        ({"key_lengths": np.array([3, -1])}, "key_lengths: expected from 0 to 7, got -1"),
    ],
)
def test_values_are_checked_where_they_are_known(some: dict[str, Any], message: str) -> None:
    call = jax.jit(lambda lengths: dot_product_attention(*inputs(), key_lengths=lengths))
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"INVALID_ARGUMENT: {message}"):
        call(some["key_lengths"]).block_until_ready()


def test_without_jax_the_package_says_what_to_install() -> None:
    code = """
import sys
sys.modules["jax"] = None
import multihead as mh
print(hasattr(mh, "jax"))
try:
    import multihead.jax
except ImportError as why:
    print(why)
"""
    assert printed(code) == 'False\nmultihead.jax needs JAX: pip install "multihead[jax]"\n'


def test_without_its_library_the_face_says_how_to_build_it() -> None:
    code = """
import pathlib
pathlib.Path.exists = lambda self: "xla" not in self.name
try:
    import multihead.jax
except ImportError as why:
    print(why)
"""
    assert "MULTIHEAD_XLA=1 pip install" in printed(code)
