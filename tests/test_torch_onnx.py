"""ONNX programs of our layers, run by ONNX's own runtime."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
import torch

from multihead.torch import (
    MultiheadAttention,
    accelerate,
    register_transformers,
    scaled_dot_product_attention,
)
from tolerance import assert_close

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]


def translated(model: torch.nn.Module, inputs: tuple[Any, ...], opset: int) -> set[str]:
    """Assert that a model's ONNX program computes the same; return its operations."""
    program = torch.onnx.export(
        model.eval(), inputs, dynamo=True, opset_version=opset, verbose=False
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    given = {x.name: y.numpy() for x, y in zip(session.get_inputs(), inputs, strict=True)}
    expected = model(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for found, x in zip(session.run(None, given), expected, strict=True):
        assert_close(found, x.detach().numpy(), 1e-5)
    return {node.op_type for node in program.model.graph}


class Called(torch.nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = MultiheadAttention(12, 3, batch_first=True, add_bias_kv=True)
        self.options = options

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> Any:
        out, weights = self.layer(x, x, x, padding, **self.options)
        return (out,) if weights is None else (out, weights)


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("weights", [False, True])
def test_our_layer(weights: bool, opset: int) -> None:
    padding = torch.arange(5) >= torch.tensor([[5], [2]])
    given = torch.randn(2, 5, 12), padding
    operations = translated(Called(need_weights=weights, is_causal=True), given, opset)
    assert ("Attention" in operations) == (opset == 23 and not weights)


class Attend(torch.nn.Module):
    def forward(self, q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, q, q, mask)


@pytest.mark.parametrize("opset", [20, 23])
def test_attention_alone(opset: int) -> None:
    mask = torch.rand(2, 1, 5, 5) < 0.6
    mask[1, 0, 3] = False  # and zeros for what sees nothing
    operations = translated(Attend(), (torch.randn(2, 3, 5, 4), mask), opset)
    assert ("Attention" in operations) == (opset == 23)


@pytest.mark.parametrize("opset", [20, 23])
def test_an_accelerated_encoder(opset: int) -> None:
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2)
    assert accelerate(model) == 2
    operations = translated(model, (torch.randn(2, 5, 12),), opset)
    assert ("Attention" in operations) == (opset == 23)


def test_a_hugging_face_model() -> None:
    import transformers

    register_transformers()
    config = transformers.BertConfig(
        vocab_size=37,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=31,
    )
    bert = transformers.AutoModel.from_config(config, attn_implementation="multihead")

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.bert(ids, attention_mask=mask).last_hidden_state

    mask = (torch.arange(7) < torch.tensor([[7], [4]])).long()
    assert "Attention" in translated(First(), (torch.randint(3, 37, (2, 7)), mask), 23)
