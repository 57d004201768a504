"""Half precision and autocast under PyTorch's compiler, dispatch modes and operator checks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

from multihead.arguments import AttentionOptions, AttentionTensors, LayerOptions
from multihead.torch import MultiheadAttention, scaled_dot_product_attention
from multihead.torch.calls import AttentionCall, LayerCall
from multihead.torch.ops import cache_elements
from multihead.torch.schema import flat_attention, flat_layer

HALF = [torch.bfloat16, torch.float16]
# the dtypes of inputs and of parameters; None: the half one
MODES = {
    "half": (None, None),
    "float32 parameters": (None, torch.float32),
    "autocast": (torch.float32, torch.float32),
}

pytestmark = [
    pytest.mark.parametrize("dtype", HALF, ids=str),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def cast(mode: str, dtype: torch.dtype) -> Any:
    return torch.autocast("cpu", dtype) if mode == "autocast" else nullcontext()


@pytest.mark.parametrize("mode", MODES)
def test_one_graph_computes_the_same_bits_for_any_length(mode: str, dtype: torch.dtype) -> None:
    of_inputs, of_parameters = (x or dtype for x in MODES[mode])
    module = MultiheadAttention(24, 3, batch_first=True, add_zero_attn=True).to(of_parameters)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    frames = 0
    for length in (19, 37, 66):
        x = torch.randn(2, length, 24).to(of_inputs).requires_grad_()
        padding = torch.rand(2, length) < 0.3
        found = []
        for call in (module, compiled):
            with cast(mode, dtype):
                out, weights = call(x, x, x, key_padding_mask=padding)
            assert out.dtype == weights.dtype == dtype
            loss = out.float().square().sum() + weights.float().square().sum()
            found.append([out, weights, *torch.autograd.grad(loss, [x, *module.parameters()])])
        for a, b in zip(*found, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        frames = frames or counter.frame_count
    assert counter.frame_count == frames


@pytest.mark.parametrize("mode", ["half", "autocast"])
def test_compiled_attention_computes_the_same_bits(mode: str, dtype: torch.dtype) -> None:
    of_inputs = MODES[mode][0] or dtype
    compiled = torch.compile(scaled_dot_product_attention, fullgraph=True)
    leaves = [torch.randn(2, 3, n, 8).to(of_inputs) for n in (19, 37, 37)]
    leaves = [x.requires_grad_() for x in (*leaves, torch.randn(19, 37).to(of_inputs))]
    found = []
    for call in (scaled_dot_product_attention, compiled):
        with cast(mode, dtype):
            out = call(*leaves)
        assert out.dtype == dtype
        found.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def layer_arguments(mode: str, dtype: torch.dtype) -> tuple[Any, ...]:
    of_inputs, of_parameters = (x or dtype for x in MODES[mode])
    module = MultiheadAttention(12, 3, add_bias_kv=True).to(of_parameters)
    x = torch.randn(2, 5, 12).to(of_inputs).requires_grad_()
    mask = torch.randn(5, 5).to(of_inputs).requires_grad_()
    options = LayerOptions(
        dtype=str(dtype)[6:],
        num_heads=3,
        key_heads=3,
        head_dim=module.head_dim,
        zero_row=False,
        causal=True,
        average=True,
        tokens_first=False,
        dropout_p=0.0,
        seed=None,
    )
    tensors = module._tensors((x, x, x), (None, mask), False)
    call = LayerCall(tensors, options, None)
    return *flat_layer(call), cache_elements(call)


def attention_arguments(mode: str, dtype: torch.dtype) -> tuple[Any, ...]:
    of_inputs = MODES[mode][0] or dtype
    q, k, v = (torch.randn(2, 3, 7, 4).to(of_inputs).requires_grad_() for _ in range(3))
    options = AttentionOptions(str(dtype)[6:], False, 0.5, 0.0, None)
    return flat_attention(AttentionCall(AttentionTensors(q, k, v, None), options))


@pytest.mark.parametrize("mode", MODES)
def test_the_operations_pass_pytorch_s_checks(mode: str, dtype: torch.dtype) -> None:
    opcheck(torch.ops.multihead.attention, layer_arguments(mode, dtype))
    operation = torch.ops.multihead.scaled_dot_product_attention
    opcheck(operation, attention_arguments(mode, dtype))


@pytest.mark.parametrize("mode", MODES)
def test_stand_ins_have_the_dtypes_of_results(mode: str, dtype: torch.dtype) -> None:
    of_inputs, of_parameters = (x or dtype for x in MODES[mode])
    with FakeTensorMode(), cast(mode, dtype):
        module = MultiheadAttention(12, 3, dtype=of_parameters)
        x = torch.empty(5, 2, 12, dtype=of_inputs)
        out, weights = module(x, x, x)
        attended = scaled_dot_product_attention(x, x, x)
    assert out.dtype == weights.dtype == attended.dtype == dtype
    assert (out.shape, weights.shape) == ((5, 2, 12), (2, 5, 5))
