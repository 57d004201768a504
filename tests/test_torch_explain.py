"""`explain`: who computes each layer, and why."""

from __future__ import annotations

import os
import types

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from torch.nn.utils import parametrizations

from multihead.torch import MultiheadAttention, accelerate, explain, register_transformers


class Own(torch.nn.MultiheadAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Reader(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.attention.in_proj_weight.mT


@pytest.mark.filterwarnings("ignore:Reader reads")
def test_each_layer_has_its_way_and_reason() -> None:
    layers = {
        "plain": torch.nn.MultiheadAttention(8, 2),
        "ours": MultiheadAttention(8, 2),
        "narrow": torch.nn.MultiheadAttention(8, 2, dtype=torch.bfloat16),
        "own": Own(8, 2),
        "put": torch.nn.MultiheadAttention(8, 2),
        "read": Reader(),
        "meta": torch.nn.MultiheadAttention(8, 2, device="meta"),
        "complex": torch.nn.MultiheadAttention(8, 2, dtype=torch.complex64),
        "reshaped": MultiheadAttention(8, 2),
        "normed": torch.nn.MultiheadAttention(8, 2),
        "linear": torch.nn.Linear(8, 8),
    }
    layers["put"].forward = types.MethodType(lambda self, x: x, layers["put"])
    layers["reshaped"].in_proj_weight = torch.nn.Parameter(torch.zeros(24, 4))
    parametrizations.weight_norm(layers["normed"].out_proj)
    model = torch.nn.ModuleDict(layers)
    before = [line.split(maxsplit=2) for line in explain(model).splitlines()]
    assert len(before) == 10
    assert before[0][2] == "PyTorch: accelerate(model) puts it on the engine"
    accelerate(model)
    after = {line.split()[0]: line.split(maxsplit=2)[2] for line in explain(model).splitlines()}
    starts = {
        "plain": "engine",
        "ours": "engine",
        "narrow": "engine",
        "own": "its own: Own has a forward of its own",
        "put": "its own: a forward was put on the instance",
        "read.attention": "not called: Reader reads its parameters",
        "meta": "PyTorch: in_proj_weight is on meta",
        "complex": "PyTorch: in_proj_weight is of torch.complex64",
        "reshaped": "PyTorch: its parameters are of other shapes",
        "normed": "engine, then out_proj as a module",
    }
    assert after.keys() == starts.keys()
    for name, start in starts.items():
        assert after[name].startswith(start), (name, after[name])


def test_hugging_face_s_layers_are_among_them() -> None:
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.AutoModel.from_config(config)
    with pytest.warns(UserWarning, match=r"explain\(model\)"):
        assert accelerate(model) == 0
    lines = explain(model).splitlines()
    assert len(lines) == 2
    assert all(
        "BertSelfAttention" in x and 'set_attn_implementation("multihead")' in x for x in lines
    )
    register_transformers()
    model.set_attn_implementation("multihead")
    assert all(x.endswith("engine: multihead") for x in explain(model).splitlines())
    config = transformers.XGLMConfig(
        vocab_size=9, d_model=8, num_layers=1, attention_heads=2, ffn_dim=7
    )
    (line,) = explain(transformers.AutoModel.from_config(config)).splitlines()
    assert 'transformers: eager; transformers\' XGLMConfig models do not support "sdpa"' in line


def test_hugging_face_s_calls_of_pytorch_s_functions_are_redirected() -> None:
    config = transformers.WhisperConfig(
        vocab_size=9,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        pad_token_id=0,
    )
    model = transformers.AutoModel.from_config(config, attn_implementation="sdpa").eval()
    given = {
        "input_features": torch.randn(1, 80, 3000),
        "decoder_input_ids": torch.tensor([[1, 2, 3]]),
    }
    expected = model(**given).last_hidden_state
    report = accelerate(model, functions=True)
    assert (report, len(report.functions), report.left) == (3, 3, ())
    ways = [line.split(maxsplit=2)[2] for line in explain(model).splitlines()]
    assert ways == ["engine: PyTorch's functions are redirected"] * 3
    found = model(**given).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    model.set_attn_implementation("eager")
    assert len(accelerate(model, functions=True).left) == 3


def test_models_without_attention_layers() -> None:
    assert "multihead.torch.scaled_dot_product_attention" in explain(torch.nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got list"):
        explain([torch.nn.Linear(3, 3)])  # type: ignore[arg-type]
