"""What knows PyTorch's layer by type, source or symbol: a leaf, an answer, or a sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

from multihead.torch import MultiheadAttention, accelerate, restore, scaled_dot_product_attention

pytestmark = pytest.mark.filterwarnings("ignore")


class Around(torch.nn.Module):
    def __init__(self, kind: Any = MultiheadAttention) -> None:
        super().__init__()
        self.before = torch.nn.Linear(8, 8)
        self.attention = kind(8, 2, batch_first=True)
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        x = self.before(self.quant(x))
        out, weights = self.attention(x, x, x, padding, average_attn_weights=False)
        return self.dequant(out) + weights.sum()


def test_a_layer_is_a_leaf_of_a_graph() -> None:
    model = Around().eval()
    graph = torch.fx.symbolic_trace(model)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert calls == ["before", "attention"]
    assert type(graph.attention) is MultiheadAttention
    for n in (2, 3):
        x, padding = torch.randn(n, 5, 8), torch.rand(n, 5) < 0.3
        assert torch.equal(graph(x, padding), model(x, padding))
        assert torch.equal(graph(x), model(x))


def test_a_layer_alone_cannot_be_a_leaf() -> None:
    with pytest.raises(torch.fx.proxy.TraceError, match="trace a module that holds it"):
        torch.fx.symbolic_trace(MultiheadAttention(8, 2))


def test_attention_is_a_leaf_of_a_graph() -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q * 2, k, k, mask, scale=0.3)

    graph = torch.fx.symbolic_trace(attend)
    assert scaled_dot_product_attention in {node.target for node in graph.graph.nodes}
    q, k, mask = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(5, 7)
    assert torch.equal(graph(q, k, mask), attend(q, k, mask))


def test_quantization_of_graphs_leaves_it_as_it_leaves_pytorch_s() -> None:
    x = torch.randn(2, 5, 8)
    mapping = quantization.get_default_qconfig_mapping("x86")
    outs = []
    for kind in (torch.nn.MultiheadAttention, MultiheadAttention):
        torch.manual_seed(5)
        prepared = quantize_fx.prepare_fx(Around(kind).eval(), mapping, (x,))
        prepared(x)
        made = quantize_fx.convert_fx(prepared)
        assert type(made.attention) is kind
        outs.append(made(x))
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)


def test_static_quantization_asks_for_pytorch_s() -> None:
    model = Around(torch.nn.MultiheadAttention).eval()
    accelerate(model)
    model.qconfig = quantization.get_default_qconfig("x86")
    x = torch.randn(2, 5, 8)
    prepared = quantization.prepare(copy.deepcopy(model))
    prepared(x)
    made = quantization.convert(prepared)
    with pytest.raises(TypeError, match=r"got torch\.quint8.*\.restore\(model\) before prepare"):
        made(x)
    assert restore(model) == 1
    prepared = quantization.prepare(model)
    prepared(x)
    assert type(prepared.attention).__module__.startswith("torch.ao.nn.quantizable")
    assert "ao.nn.quantized" in type(quantization.convert(prepared).attention).__module__


def test_dynamic_quantization_leaves_it() -> None:
    model = Around().eval()
    made = quantization.quantize_dynamic(model, {torch.nn.Linear})
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(made(x), model(x), rtol=0.1, atol=0.1)


class GradSampleModule:
    """Registers hooks as Opacus' does, on every module that has parameters of its own."""

    def __init__(self, module: torch.nn.Module) -> None:
        for part in module.modules():
            if list(part.parameters(recurse=False)):
                part.register_forward_hook(self.capture_activations_hook)

    def capture_activations_hook(self, *_: Any) -> None:
        raise AssertionError("it is never called")


GradSampleModule.capture_activations_hook.__module__ = "opacus.grad_sample.grad_sample_module"


def test_opacus_asks_for_pytorch_s() -> None:
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2))
    accelerate(model)
    with pytest.raises(TypeError, match=r"Opacus .*\.restore\(model\) before ModuleValidator\.fix"):
        GradSampleModule(model)
    x = torch.randn(5, 3, 8)
    model[0](x, x, x)
    restore(model)
    GradSampleModule(model)


def test_scripting_asks_for_pytorch_s() -> None:
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2))
    accelerate(model)
    for module in (model, model[0]):
        with pytest.raises(
            NotImplementedError, match=r"restore\(model\) before torch\.jit\.script"
        ):
            torch.jit.script(module)


def test_an_out_proj_s_forward_on_the_instance_is_called() -> None:
    layer = MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    expected = layer(x, x, x)[0]
    inner = layer.out_proj.forward
    layer.out_proj.forward = lambda x: inner(x) + 3
    torch.testing.assert_close(layer(x, x, x)[0], expected + 3)
