"""`multihead.torch.attention`: `F.multi_head_attention_forward` is ours in the scope."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (as models have it)

from multihead.torch import MultiheadAttention, attention
from scope_calls import close


def layer_arguments(module: torch.nn.MultiheadAttention) -> dict[str, Any]:
    names = ("num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "add_zero_attn")
    own = {name: getattr(module, name) for name in names}
    separate = {f"{x}_proj_weight": getattr(module, f"{x}_proj_weight") for x in "qkv"}
    return {
        **own,
        **separate,
        "use_separate_proj_weight": not module._qkv_same_embed_dim,
        "embed_dim_to_check": module.embed_dim,
        "dropout_p": 0.0,
        "out_proj_weight": module.out_proj.weight,
        "out_proj_bias": module.out_proj.bias,
    }


MADE: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "widths": {"kdim": 5, "vdim": 7},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}
CALLED: dict[str, dict[str, Any]] = {
    "weights": {},
    "each head": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
    "padding": {"key_padding_mask": True},
    "mask": {"attn_mask": "bool"},
    "mask of each head": {"attn_mask": "heads", "need_weights": False},
    "causal": {"attn_mask": "causal", "is_causal": True, "need_weights": False},
    "causal, weights": {"attn_mask": "causal", "is_causal": True},
    "a hint that is wrong": {"attn_mask": "bool", "is_causal": True},
    "padding, causal": {"attn_mask": "causal", "is_causal": True, "key_padding_mask": True},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("called", CALLED)
@pytest.mark.parametrize("made", MADE)
def test_the_layer_s_function(made: str, called: str, unbatched: bool, calls: list[str]) -> None:
    module = torch.nn.MultiheadAttention(12, 3, **MADE[made], dtype=torch.float64)
    given = layer_arguments(module) | CALLED[called]
    n, length, source = 2, 6, 6 if made == "plain" else 8
    shapes = [(length, n, 12), (source, n, module.kdim), (source, n, module.vdim)]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    if made == "plain":
        inputs = [inputs[0]] * 3
    if "key_padding_mask" in given:
        given["key_padding_mask"] = torch.arange(source) >= torch.tensor([[source], [4]])
    masks = {
        "bool": torch.arange(length)[:, None] + 2 < torch.arange(source),
        "heads": torch.rand(n * 3, length, source) < 0.3,
        "causal": torch.ones(length, source, dtype=torch.bool).triu(1),
    }
    masks["heads"][..., 0] = False
    if "attn_mask" in given:
        given["attn_mask"] = masks[given["attn_mask"]]
    if unbatched:
        inputs = [x[:, 0] for x in inputs]
        if "key_padding_mask" in given:
            given["key_padding_mask"] = given["key_padding_mask"][1]
        if given.get("attn_mask", torch.empty(0)).dim() == 3:
            given["attn_mask"] = given["attn_mask"][:3]
    inputs = [x.requires_grad_() for x in inputs]
    results = []
    for context in (attention(), torch.device("cpu")):
        with context:
            out, weights = F.multi_head_attention_forward(*inputs, **given)
        grad = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
        loss = (out * grad).sum() + (0 if weights is None else weights.square().sum())
        every = [inputs[0], *module.parameters()]
        results.append([out, weights, *torch.autograd.grad(loss, every)])
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            close(found, expected)
    extra_and_causal = made == "extra keys" and given.get("is_causal", False)
    assert calls == ([] if extra_and_causal else ["multi_head_attention_forward"])


def test_the_layer_s_function_is_pytorch_s_where_ours_does_not_take_it(calls: list[str]) -> None:
    module = torch.nn.MultiheadAttention(12, 3)
    given, x = layer_arguments(module), torch.randn(6, 2, 12)
    static = {"static_k": torch.randn(6, 6, 4), "static_v": torch.randn(6, 6, 4)}
    odd: list[tuple[torch.Tensor, dict[str, Any]]] = [
        (x, static),
        (x.double(), {}),
        (x, {"is_causal": True}),
        (x, {"attn_mask": torch.zeros(5, 5)}),
        (x, {"attn_mask": torch.zeros(1, 1, 6, 6)}),
        (x, {"embed_dim_to_check": 13}),
        (x, {"in_proj_weight": None}),
        (x, {"use_separate_proj_weight": True}),
        (x, {"key_padding_mask": torch.zeros(3, 6)}),
        (x[..., :5], {}),
    ]
    for query, more in odd:
        outcomes: list[Any] = []
        for context in (attention(), torch.device("cpu")):
            with context:
                try:
                    outcomes += F.multi_head_attention_forward(*[query] * 3, **given | more)
                except Exception as error:
                    outcomes += [type(error), str(error)]
        for found, expected in zip(outcomes[:2], outcomes[2:], strict=True):
            same = isinstance(found, torch.Tensor) and torch.equal(found, expected)
            assert same or found == expected, more
    assert calls == []


def test_dropout_of_the_layer_s_function_is_in_training_alone(calls: list[str]) -> None:
    module = torch.nn.MultiheadAttention(12, 3)
    given, x = layer_arguments(module) | {"dropout_p": 0.5}, torch.randn(40, 2, 12)
    with attention():
        _, weights = F.multi_head_attention_forward(x, x, x, **given, average_attn_weights=False)
        _, plain = F.multi_head_attention_forward(x, x, x, **given, training=False)
    assert 0.45 < (weights == 0).double().mean() < 0.55
    assert (plain > 0).all()
    assert len(calls) == 2


@pytest.mark.parametrize("batch_first", [True, False])
def test_pytorch_s_modules_call_it(batch_first: bool, calls: list[str]) -> None:
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=batch_first).double()
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        with torch.set_grad_enabled(training):
            with attention():
                found = layer(x)
            close(found, layer(x))
    assert calls == ["multi_head_attention_forward"] * 2


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_inputs_may_change_where_pytorch_lets_them(batch_first: bool, frozen: bool) -> None:
    module = torch.nn.MultiheadAttention(12, 2, batch_first=batch_first).double()
    module.in_proj_weight.requires_grad_(not frozen)
    outcomes = []
    for context in (attention(), torch.device("cpu")):
        given = torch.linspace(-1, 1, 120, dtype=torch.float64).view(2, 5, 12).requires_grad_()
        x = given * 2
        with context:
            out, _ = module(x, x, x, need_weights=False)
            x.add_(1.0)
        try:
            outcomes.append(torch.autograd.grad(out.square().sum(), given)[0])
        except RuntimeError:  # modified by an in-place operation
            outcomes.append(None)
    assert (outcomes[1] is None) == (not batch_first and not frozen)
    if outcomes[1] is not None:
        close(*outcomes)


def test_layers_of_ours_are_as_without(calls: list[str]) -> None:
    layer, x = MultiheadAttention(12, 2), torch.randn(5, 3, 12)
    expected = layer(x, x, x)
    with attention():
        found = layer(x, x, x)
    assert all(map(torch.equal, found, expected))
    assert calls == []
