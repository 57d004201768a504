"""What `multihead.jax.multi_head_attention` refuses, before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import multihead as mh

jax = pytest.importorskip("jax")

from jax_layers import kernels  # noqa: E402
from multihead.jax import multi_head_attention  # noqa: E402

X = np.random.default_rng(5).standard_normal((2, 5, 6)).astype(np.float32)
STATE = mh.MultiheadAttention(6, 3, seed=0).state_dict()
TREE = kernels(STATE, mh.MultiheadAttention(6, 3))


def without(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: x for key, x in tree.items() if key != name}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (without(STATE, "in_proj_weight"), r"params: missing q_proj_weight"),
        (without(STATE, "in_proj_bias"), r"params: missing in_proj_bias"),
        (STATE | {"bias_k": np.ones((1, 1, 6), np.float32)}, r"params: missing bias_v"),
        (STATE | {"norm": X}, r"params: unexpected norm"),
        (STATE | {"out_proj.bias": X}, r"out_proj\.bias: expected \(6,\), got \(2, 5, 6\)"),
        (without(TREE, "out"), r"missing out\.kernel; missing out\.bias"),
        (TREE | {"query_ln": {"scale": X}}, r"params: unexpected query_ln\.scale"),
        (TREE | {"key": {"kernel": TREE["key"]["kernel"]}}, r"params: missing key\.bias"),
        (TREE | {"out": TREE["query"]}, r"out\.kernel: expected \(3, 2, 6\), got \(6, 3, 2\)"),
        (TREE | {"query": {"kernel": X[0]}}, r"query\.kernel'\]: expected 3 axes, got \(5, 6\)"),
    ],
)
def test_parameters_that_do_not_fit(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_head_attention(params, X, num_heads=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": X[..., :5]}, r"query: expected \(N, L, 6\) or \(L, 6\), got \(2, 5, 5\)"),
        ({"key": X[:1]}, r"key: expected \(2, S, 6\), got \(1, 5, 6\)"),
        ({"key": X, "value": X[:, :3]}, r"value: expected \(2, 5, 6\), got \(2, 3, 6\)"),
        ({"num_heads": 2}, r"num_heads: expected 3, as query\.kernel has, got 2"),
        ({"num_kv_heads": 1}, r"key\.kernel: expected \(6, 1, 2\), got \(6, 3, 2\)"),
        ({"head_dim": 4}, r"query\.kernel: expected \(6, 3, 4\), got \(6, 3, 2\)"),
        ({"attn_mask": X > 0}, r"attn_mask: expected \(5, 5\), \(6, 5, 5\) or 4-D"),
        ({"key_padding_mask": X[0] > 0}, r"key_padding_mask: expected \(2, 5\), got \(5, 6\)"),
        ({"dropout_p": 1.5, "dropout_key": jax.random.key(0)}, r"dropout_p: expected"),
        ({"window": -1}, r"window\[0\]: expected"),
        ({"rope": mh.Rope(dims=4)}, r"rope"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_head_attention(TREE, **({"query": X, "num_heads": 3} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": [X]}, "params: expected a mapping of names to arrays, got list"),
        ({"params": STATE | {"out_proj.bias": np.ones(6, np.float16)}}, "expected one dtype"),
        ({"query": X.astype(int)}, "query: expected float32, got int"),
        ({"key": X.astype(np.float16)}, r"key: expected float32, got float16 \(key\.astype"),
        ({"value": X}, "key: expected an array, as there is a value, got None"),
        ({"attn_mask": np.ones((5, 5), int)}, r"attn_mask: expected bool or floating, got int"),
        ({"is_causal": "yes"}, "is_causal: expected"),
        ({"need_weights": None}, "need_weights: expected"),
        ({"batch_first": None}, "batch_first: expected"),
    ],
)
def test_types_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        multi_head_attention(**({"params": STATE, "query": X, "num_heads": 3} | options))
