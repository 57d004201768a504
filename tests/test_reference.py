"""The oracle itself: against PyTorch in float64, and against central differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cases import (
    MASKS,
    PADDING,
    Construction,
    make_call,
    oracle_result,
    oracle_step,
    oracle_weights,
)
from differences import central_difference
from multihead import reference
from multihead.reference.dropout import philox
from tolerance import CENTRAL_DIFFERENCES, TORCH, assert_close, tolerance

BOUND = tolerance(TORCH, "float64")


def random_params(how: Construction, rng: np.random.Generator) -> dict[str, np.ndarray]:
    e, kdim, vdim = how.embed_dim, how.kdim or how.embed_dim, how.vdim or how.embed_dim
    separate = {f"{x}_proj_weight": (e, d) for x, d in zip("qkv", (e, kdim, vdim), strict=True)}
    packed = {"in_proj_weight": (3 * e, e)}
    shapes: dict[str, tuple[int, ...]] = dict(packed if kdim == vdim == e else separate)
    if how.bias:
        shapes |= {"in_proj_bias": (3 * e,)}
    if how.add_bias_kv:
        shapes |= {"bias_k": (1, 1, e), "bias_v": (1, 1, e)}
    shapes |= {"out_proj.weight": (e, e)}
    if how.bias:
        shapes |= {"out_proj.bias": (e,)}
    return {name: rng.standard_normal(shape) / 2 for name, shape in shapes.items()}


CONSTRUCTIONS = [
    Construction(bias=bias, add_bias_kv=bkv, add_zero_attn=zero, kdim=kdim, vdim=vdim)
    for bias, bkv, zero in itertools.product((True, False), repeat=3)
    for kdim, vdim in ((None, None), (5, 9))
]


@pytest.mark.parametrize("how", CONSTRUCTIONS, ids=str)
@pytest.mark.parametrize("mask", ["none", "bool 2-D", "float 2-D", "float 3-D"])
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
def test_agrees_with_torch(
    how: Construction, mask: str, padding: str, rng: np.random.Generator
) -> None:
    params = random_params(how, rng)
    call = make_call(how, rng, mask=mask, padding=padding, weights="per head")
    for name in ("attn_mask", "key_padding_mask"):  # the first key is visible: torch has NaN
        if call.options[name] is not None:
            call.options[name][..., 0] = 0
    expected = oracle_step(params, how, call)

    module = torch.nn.MultiheadAttention(
        how.embed_dim,
        how.num_heads,
        bias=how.bias,
        add_bias_kv=how.add_bias_kv,
        add_zero_attn=how.add_zero_attn,
        kdim=how.kdim,
        vdim=how.vdim,
        batch_first=True,
        dtype=torch.float64,
    )
    module.load_state_dict({name: torch.from_numpy(x) for name, x in params.items()})
    leaves = {name: torch.from_numpy(getattr(call, name)) for name in ("query", "key", "value")}
    options = dict(call.options)
    for name in ("attn_mask", "key_padding_mask"):
        if options[name] is not None:
            options[name] = torch.from_numpy(options[name])
            if options[name].is_floating_point():
                leaves[name] = options[name]
    for leaf in leaves.values():
        leaf.requires_grad_()
    out, weights = module(leaves["query"], leaves["key"], leaves["value"], **options)
    loss = (out * torch.from_numpy(call.d_out)).sum()
    (loss + (weights * torch.from_numpy(call.d_weights)).sum()).backward()

    assert_close(expected.out, out.detach(), BOUND, "out")
    assert_close(expected.weights, weights.detach(), BOUND, "weights")
    leaves |= dict(module.named_parameters())
    assert set(leaves) == set(expected.grads)
    for name, leaf in leaves.items():
        assert_close(expected.grads[name], leaf.grad, BOUND, f"d_{name}")


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("weights", ["none", "average", "per head"])
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_those_of_central_differences(
    extras: bool, dropout: float, weights: str, mask: str, rng: np.random.Generator
) -> None:
    how = Construction(
        embed_dim=4, num_heads=2, add_bias_kv=extras, add_zero_attn=extras, dropout=dropout
    )
    padding = "float" if mask.startswith("float") else "bool"
    call = make_call(
        how, rng, length=3, s=4, mask=mask, padding=padding, is_causal=True, weights=weights
    )
    params = random_params(how, rng)
    grads = oracle_step(params, how, call, (3, 4)).grads
    variables = {name: getattr(call, name) for name in ("query", "key", "value")} | params
    variables |= {name: call.options[name] for name in grads if name in call.options}

    def loss() -> float:
        result = oracle_result(params, how, call, (3, 4))
        total, shown = float((result.out * call.d_out).sum()), oracle_weights(result, call)
        return total if shown is None else total + float((shown * call.d_weights).sum())

    assert set(grads) == set(variables)
    for name, variable in variables.items():
        numeric = central_difference(loss, variable)
        assert_close(grads[name], numeric, CENTRAL_DIFFERENCES, f"d_{name}", scale=1.0)


def test_philox_known_answers() -> None:
    """The first two words of the known answers of Random123 for philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    assert [int(x) for x in philox([0] * 4, [0] * 2)] == [0x6627E8D5, 0xE169C58D]
    assert [int(x) for x in philox([ones] * 4, [ones] * 2)] == [0x408F276D, 0x41C83B0E]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_offsets_place_a_part_in_the_whole(dropout: float, rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((3, 4, length, 5)) for length in (6, 8, 8))
    options = {"is_causal": True, "dropout": dropout, "seed": 5, "counter": 6}
    whole = reference.attention(q, k, v, **options)
    part = reference.attention(q[1:, 2:, 3:], k[1:, 2:], v[1:, 2:], offsets=(1, 2, 3, 0), **options)
    np.testing.assert_allclose(part.out, whole.out[1:, 2:, 3:], rtol=1e-13)

    halves = [slice(0, 3), slice(3, 8)]
    parts = [
        reference.attention(q, k[:, :, x], v[:, :, x], offsets=(0, 0, 0, x.start), **options)
        for x in halves
    ]
    merged = sum(np.exp(x.lse - whole.lse)[..., None] * x.out for x in parts)
    np.testing.assert_allclose(merged, whole.out, rtol=1e-12, atol=1e-13)


def test_a_row_without_keys_is_zero_and_has_no_gradient(rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((1, 2, 4, 3)) for _ in range(3))
    hides = np.zeros((4, 4), bool)
    hides[2] = True
    result = reference.attention(q, k, v, hides)
    d_q, d_k, _, d_scores, _ = reference.attention_backward(result, np.ones_like(q))
    assert not result.out[:, :, 2].any()
    assert not result.weights[:, :, 2].any()
    assert (result.lse[:, :, 2] == -np.inf).all()
    assert not d_q[:, :, 2].any()
    assert not d_scores[:, :, 2].any()
    assert d_k.any()
