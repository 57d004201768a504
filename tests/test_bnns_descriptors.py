"""BNNS takes no descriptor that is wrong: of weights, biases, masks and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnns_problem import GRADIENTS, Options, Problem
from bnns_refused import backward_refused, everything, forward_refused
from multihead import bnns
from multihead.bnns import BNNSError, DataLayout, DataType


@pytest.fixture
def problem(rng: np.random.Generator) -> Problem:
    """A layer with everything, and a cache of its forward."""
    return everything(rng)


def spoil(d: bnns.NDArrayDescriptor, how: str) -> None:
    if how == "layout":
        d.layout = 0x12345
    elif how == "rank":
        d.layout = DataLayout.FourDLastMajor
    elif how == "data_type":
        d.data_type = DataType.Int32
    elif how == "size":
        d.size[0] += 1
    elif how == "huge":
        d.size[0] = 2**63
    elif how == "stride":
        d.stride[1] = 2**64 - 8


HOW = ["layout", "rank", "data_type", "size", "huge", "stride"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("part", ["target_desc", "weights", "bias"])
@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
def test_create_refuses_a_wrong_descriptor(
    name: str, part: str, how: str, problem: Problem
) -> None:
    layer = problem.layer()
    d = getattr(getattr(layer, name), part)
    if part == "bias" and d.size[1] == 0 and how == "stride":
        d.stride[0] = 2**64 - 8
    else:
        spoil(d, how)
    assert bnns.BNNSFilterCreateLayerMultiheadAttention(layer, raw=True) is None
    # where two sizes differ, either may be the wrong one
    assert (".size: expected" if how == "size" else f"{name}.{part}") in bnns.last_error()
    with pytest.raises(BNNSError, match="expected"):
        bnns.Filter(layer)


def test_create_refuses_what_does_not_go_together(problem: Problem) -> None:
    def refused_layer(change: Callable[[Any, Any], None], word: str) -> None:
        layer, options = problem.layer(), bnns.FilterParameters()
        change(layer, options)
        assert bnns.BNNSFilterCreateLayerMultiheadAttention(layer, options, raw=True) is None
        assert word in bnns.last_error(), bnns.last_error()

    def no_data(name: str) -> Callable[[Any, Any], None]:
        def change(layer: Any, options: Any) -> None:
            field = layer
            for part in name.split("."):
                field = getattr(field, part)
            field.data = None

        return change

    for name in ("key_attn_bias", "value_attn_bias", "key.weights", "output.weights"):
        refused_layer(no_data(name), name)
    refused_layer(
        lambda layer, options: setattr(
            options, "alloc_memory", bnns.ALLOCATE(lambda *arguments: 0)
        ),
        "alloc_memory",
    )
    refused_layer(lambda layer, options: setattr(options, "flags", 6), "flags")
    assert bnns.BNNSFilterCreateLayerMultiheadAttention(None, raw=True) is None
    assert "layer_params" in bnns.last_error()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["key_mask", "add_to_attention"])
def test_apply_refuses_a_wrong_mask(name: str, how: str, problem: Problem) -> None:
    d = problem.mask("key_mask" if name == "key_mask" else "attention")
    assert d is not None
    if how == "stride" and name == "key_mask":
        d.stride[0] = 2**64 - 8
    else:
        spoil(d, how)
    forward_refused(problem, name, **{name: d})
    backward_refused(problem, name, **{name: d})


def test_a_mask_has_an_address_and_a_fitting_type(problem: Problem) -> None:
    for name, slot in (("key_mask", "key_mask"), ("add_to_attention", "attention")):
        d = problem.mask(slot)
        assert d is not None
        d.data = None
        forward_refused(problem, f"{name}.data", "NULL", **{name: d})
    d = problem.mask("key_mask")
    assert d is not None
    d.data_type = DataType.Float32
    forward_refused(problem, "key_mask.data_type", "Boolean", key_mask=d)


@pytest.mark.parametrize("how", [*HOW, "boolean"])
@pytest.mark.parametrize("part", ["target_desc", "weights", "bias"])
@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
def test_backward_refuses_a_wrong_gradient(
    name: str, part: str, how: str, problem: Problem
) -> None:
    delta = problem.delta(name)
    d = getattr(delta, part)
    if how == "boolean":
        d.data_type = DataType.Boolean
    elif part == "bias" and name == "output" and how == "stride":
        d.stride[0] = 2**64 - 8
    else:
        spoil(d, how)
    field = f"{name}_param_delta"
    backward_refused(problem, f"{field}.{part}", **{field: delta})


def test_backward_refuses_gradients_of_what_is_not_there(rng: np.random.Generator) -> None:
    other = Problem.make(rng, Options(attention_biases=True))
    bare = Problem.make(rng, Options(biases=(False,) * 4))
    bare.create()
    bare.forward_with_cache()
    for slot in (*bare.slots.values(), *bare.grads.values()):
        slot.keep_state()
    bare.cache_before = bare.cache.copy()
    for name in ("key_attn_bias", "value_attn_bias"):
        given = {f"{name}_delta": other.delta_of(name)}
        backward_refused(bare, f"{name}_delta", "no such bias", **given)
    for name in (*GRADIENTS, "output"):
        delta = bare.delta(name)
        delta.bias = other.grads[f"{name}.bias"].descriptor()
        given = {f"{name}_param_delta": delta}
        backward_refused(bare, f"{name}_param_delta.bias", "no such bias", **given)
