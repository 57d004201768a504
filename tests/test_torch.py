"""The layer against torch.nn.MultiheadAttention with the same state dict and inputs."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch

import multihead as mh
from cases import (
    LAYOUTS,
    PADDING,
    WEIGHTS,
    Call,
    Construction,
    Step,
    layer_step,
    make_call,
    make_layer,
    oracle_step,
)
from tolerance import TORCH, assert_all_close, assert_close, tolerance

CONFIGURATIONS = {
    "default": {},
    "no bias": {"bias": False},
    "separate": {"kdim": 5, "vdim": 9},
    "bias_kv": {"add_bias_kv": True},
    "everything": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 5, "vdim": 9},
}


def make_module(how: Construction) -> torch.nn.MultiheadAttention:
    return torch.nn.MultiheadAttention(
        how.embed_dim,
        how.num_heads,
        bias=how.bias,
        add_bias_kv=how.add_bias_kv,
        add_zero_attn=how.add_zero_attn,
        kdim=how.kdim,
        vdim=how.vdim,
        batch_first=how.layout == "batch first",
        dtype=getattr(torch, how.dtype),
    )


def widened(call: Call) -> Call:
    """The same numbers in float64."""

    def wide(x: Any) -> Any:
        floating = isinstance(x, np.ndarray) and x.dtype == np.float32
        return x.astype(np.float64) if floating else x

    options = {name: wide(x) for name, x in call.options.items()}
    tensors = (wide(x) for x in (call.query, call.key, call.value, call.d_out))
    return Call(*tensors, options, wide(call.d_weights))


def expected_step(how: Construction, params: dict[str, np.ndarray], call: Call) -> Step:
    """Torch's outputs in the dtype of the layer, and its gradients as float64 has them."""
    exact = torch_step(dataclasses.replace(how, dtype="float64"), params, widened(call))
    if how.dtype == "float64":
        return exact
    own = torch_step(how, params, call)
    return Step(own.out, own.weights, exact.grads)


def torch_step(how: Construction, params: dict[str, np.ndarray], call: Call) -> Step:
    """One forward and backward of torch's module, its autograd giving every gradient."""
    module = make_module(how)
    module.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in params.items()})
    names = ("query", "key", "value")
    leaves = {name: torch.from_numpy(getattr(call, name).copy()) for name in names}
    options: dict[str, Any] = dict(call.options)
    for name in ("attn_mask", "key_padding_mask"):
        if options[name] is not None:
            options[name] = torch.from_numpy(options[name].copy())
            if options[name].is_floating_point():
                leaves[name] = options[name]
    if options["is_causal"]:  # torch takes the hint only beside the mask itself
        shape = (
            call.d_out.shape[-3 if how.layout == "sequence first" else -2],
            key_length(how, call),
        )
        options["attn_mask"] = torch.ones(shape, dtype=torch.bool).triu(1)
    for leaf in leaves.values():
        leaf.requires_grad_()
    out, weights = module(*(leaves[name] for name in names), **options)
    loss = (out * torch.from_numpy(call.d_out)).sum()
    if weights is not None:
        loss = loss + (weights * torch.from_numpy(call.d_weights)).sum()
    loss.backward()
    leaves |= dict(module.named_parameters())
    grads = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    return Step(out.detach().numpy(), None if weights is None else weights.detach().numpy(), grads)


def key_length(how: Construction, call: Call) -> int:
    return int(call.key.shape[0 if how.layout == "sequence first" else -2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("bias_kv", [False, True], ids=["", "bias_kv"])
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero"])
@pytest.mark.parametrize("dims", [(None, None), (5, 9), (12, 7)], ids=["packed", "both", "vdim"])
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
def test_every_option_that_torch_has(
    dims: tuple[int | None, int | None],
    zero: bool,
    bias_kv: bool,
    bias: bool,
    layout: str,
    dtype: str,
    rng: np.random.Generator,
) -> None:
    how = Construction(
        bias=bias,
        add_bias_kv=bias_kv,
        add_zero_attn=zero,
        kdim=dims[0],
        vdim=dims[1],
        layout=layout,
        dtype=dtype,
    )
    layer = make_layer(how, rng)
    bound = tolerance(TORCH, dtype)
    masks = ("none", "bool 2-D", "float 2-D", "bool 3-D", "float 3-D", "causal")
    for mask, padding, weights in itertools.product(masks, PADDING, WEIGHTS):
        note = (mask, padding, weights)
        causal = mask == "causal"
        if causal and weights == "none" and (bias_kv or zero):
            continue  # torch hides the extra keys there
        kind = "none" if causal else mask
        call = make_call(how, rng, mask=kind, padding=padding, is_causal=causal, weights=weights)
        for name in ("attn_mask", "key_padding_mask"):  # no row without keys: torch has NaN
            if call.options[name] is not None:
                call.options[name][..., 0] = 0
        expected = expected_step(how, layer.state_dict(), call)
        actual = layer_step(layer, call)
        assert_close(actual.out, expected.out, bound, f"out {note}")
        assert (actual.weights is None) == (expected.weights is None)
        if expected.weights is not None:
            assert_close(actual.weights, expected.weights, bound, f"weights {note}")
        sizes = oracle_step(layer.state_dict(), how, call).sizes
        assert_all_close(actual.grads, expected.grads, bound, note, sizes=sizes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("length", "s"), [(65, 130), (200, 77)])
def test_longer_sequences(length: int, s: int, dtype: str, rng: np.random.Generator) -> None:
    how = Construction(80, 2, dtype=dtype)
    layer = make_layer(how, rng)
    call = make_call(how, rng, 2, length, s, mask="float 2-D", weights="average")
    call.options["attn_mask"][:, 0] = 0
    expected = expected_step(how, layer.state_dict(), call)
    actual = layer_step(layer, call)
    bound = tolerance(TORCH, dtype)
    assert_close(actual.out, expected.out, bound, "out")
    assert_close(actual.weights, expected.weights, bound, "weights")
    assert_all_close(actual.grads, expected.grads, bound)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_state_dict_has_torchs_names_shapes_and_order(configuration: str) -> None:
    how = Construction(dtype="float32", **CONFIGURATIONS[configuration])
    expected = [(name, tuple(x.shape)) for name, x in make_module(how).state_dict().items()]
    layer = make_layer(how, np.random.default_rng(0))
    assert [(name, x.shape) for name, x in layer.state_dict().items()] == expected
    assert [(name, x.shape) for name, x in layer.parameters().items()] == expected
    assert [(name, x.shape) for name, x in layer.grads.items()] == expected


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_initialisation_has_torchs_distribution(configuration: str) -> None:
    options = CONFIGURATIONS[configuration] | {"embed_dim": 96, "num_heads": 4}
    options |= {"kdim": 160, "vdim": 64} if "kdim" in options else {}
    module = torch.nn.MultiheadAttention(**options)
    layer = mh.MultiheadAttention(**options, seed=3)
    uniform = {name for name in module.state_dict() if name.endswith("weight")}
    for name, x in module.state_dict().items():
        ours, theirs = layer.state_dict()[name], x.numpy()
        assert ours.dtype == theirs.dtype == np.float32
        if not theirs.any():
            assert not ours.any(), name
            continue
        few = theirs.size < 1000
        assert abs(ours.mean()) < (0.5 if few else 0.05) * theirs.std(), name
        assert abs(ours.std() / theirs.std() - 1) < (0.4 if few else 0.03), name
        if name in uniform:
            assert abs(np.abs(ours).max() / np.abs(theirs).max() - 1) < 0.01, name


def test_attributes_are_torchs() -> None:
    module = torch.nn.MultiheadAttention(12, 3, dropout=0.1, kdim=5, vdim=9, batch_first=True)
    layer = mh.MultiheadAttention(12, 3, dropout=0.1, kdim=5, vdim=9, batch_first=True)
    for name in "embed_dim kdim vdim num_heads head_dim dropout batch_first add_zero_attn".split():
        assert getattr(layer, name) == getattr(module, name), name
    assert layer.in_proj_weight is None
    assert layer.bias_k is None
    assert layer.bias_v is None
    assert layer.q_proj_weight.shape == module.q_proj_weight.shape
    assert layer.out_proj.weight.shape == module.out_proj.weight.shape
    assert layer.out_proj.bias.shape == module.out_proj.bias.shape


@pytest.mark.parametrize("arguments", [(0, 1), (-4, 2), (4, 0), (4, -1)])
def test_the_constructor_fails_as_torchs_does(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be greater than 0"):
        torch.nn.MultiheadAttention(*arguments)
    with pytest.raises(ValueError, match=r"embed_dim|num_heads"):
        mh.MultiheadAttention(*arguments)


def test_a_state_dict_of_other_parameters_is_refused_as_by_torch() -> None:
    module = torch.nn.MultiheadAttention(4, 2)
    layer = mh.MultiheadAttention(4, 2)
    packed = {name: x.numpy() for name, x in module.state_dict().items()}
    layer.load_state_dict(packed)
    separate = mh.MultiheadAttention(4, 2, kdim=3)
    before = {name: x.copy() for name, x in separate.state_dict().items()}
    with pytest.raises((ValueError, KeyError), match="k_proj_weight"):
        separate.load_state_dict(packed)
    for name, x in separate.state_dict().items():
        np.testing.assert_array_equal(x, before[name])
