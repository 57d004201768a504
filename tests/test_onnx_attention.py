"""ONNX's own tests of Attention and FlexAttention, through our function, in their tolerances."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest
from onnx import helper

from multihead import _native, functional

NODES = "onnx.backend.test.case.node"
GRAPHS = {
    "score_mod": "takes a graph that changes scores",
    "prob_mod": "takes a graph that changes weights",
}
WEIGHTS = 3  # the qk_matmul_output_mode of what is returned; the others are scores
ROUNDED = {"bfloat16": 2.0**-6}  # ONNX's runner allows so much more


def collected() -> list[Any]:
    """The cases, without those that spell the operator out in others."""
    node = importlib.import_module(NODES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("attention", "flexattention"):  # importing them makes the cases
            importlib.import_module(f"{NODES}.{module}")
    names = ("test_attention", "test_flexattention")
    return [
        case
        for case in node._NodeTestCases
        if case.name.startswith(names) and "_expanded" not in case.name
    ]


def attributes(case: Any) -> dict[str, Any]:
    node = case.model.graph.node[0]
    return {x.name: helper.get_attribute_value(x) for x in node.attribute}


def left_out(case: Any) -> str:
    """Why a case is not run; empty if it is."""
    given = attributes(case)
    asks = "qk_matmul_output" in case.model.graph.node[0].output
    if asks and given.get("qk_matmul_output_mode", 0) != WEIGHTS:
        return "asks for the scores of every query and key"
    return next((why for name, why in GRAPHS.items() if name in given), "")


CASES = {case.name: case for case in collected()}


def by_head(x: Any, heads: int) -> Any:
    """(N, L, H * D) as (N, H, L, D)."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def computed(case: Any) -> dict[str, Any]:
    """Our results, by the names of the operator's outputs."""
    node, given = case.model.graph.node[0], attributes(case)
    values = iter(case.data_sets[0][0])
    # inputs that are left out have no name, but those of the operator go on
    places = ["q", "k", "v", "mask", "past_key", "past_value", "lengths"]
    inputs = {place: next(values) for place, name in zip(places, node.input, strict=False) if name}
    flat = inputs["q"].ndim == 3
    q = by_head(inputs["q"], given.get("q_num_heads", 0))
    k, v = (by_head(inputs[x], given.get("kv_num_heads", 0)) for x in "kv")
    offset: Any = 0
    if "past_key" in inputs:
        offset = inputs["past_key"].shape[2]
        k, v = (np.concatenate([inputs[f"past_{x}"], y], 2) for x, y in (("key", k), ("value", v)))
    lengths = inputs.get("lengths")
    sides = [given.get(f"{side}_window_size", -1) for side in ("left", "right")]
    out, cache = functional.scaled_dot_product_attention(
        q,
        k,
        v,
        inputs.get("mask"),
        is_causal=bool(given.get("is_causal", 0)),
        scale=given.get("scale"),
        enable_gqa=True,
        window=tuple(None if side < 0 else side for side in sides),
        query_offset=offset if lengths is None else "end",
        key_lengths=lengths,
        softcap=given.get("softcap"),
        return_cache=True,
    )
    found = {"present_key": k, "present_value": v}
    weights = np.empty((*q.shape[:3], k.shape[2]), cache.stats.dtype)
    rules = cache.rules
    tensors = functional._tensors(cache.inputs, cache.mask, rules, None)
    _native.attention_forward(cache.options, tensors, cache.out, None, weights)
    found["qk_matmul_output"] = weights
    found["Y"] = out.swapaxes(1, 2).reshape(*inputs["q"].shape[:2], -1) if flat else out
    return found


@pytest.mark.filterwarnings("ignore::multihead.MaskWarning")
@pytest.mark.parametrize("name", CASES)
def test_conformance(name: str) -> None:
    case = CASES[name]
    if why := left_out(case):
        pytest.skip(why)
    found, node = computed(case), case.model.graph.node[0]
    written = [x for x in node.output if x]
    for output, expected in zip(written, case.data_sets[0][1], strict=True):
        mine = found[output]
        assert mine.shape == expected.shape
        if output != "qk_matmul_output":  # which is in the dtype that is computed in
            assert mine.dtype == expected.dtype
        np.testing.assert_allclose(
            mine.astype(np.float64),
            expected.astype(np.float64),
            rtol=ROUNDED.get(mine.dtype.name, case.rtol),
            atol=case.atol,
            err_msg=output,
        )


def test_few_cases_are_left_out() -> None:
    reasons = [left_out(case) for case in CASES.values()]
    assert len(reasons) >= 104
    assert sum(map(bool, reasons)) <= 23
