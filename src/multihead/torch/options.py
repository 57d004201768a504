"""The layer's options beyond PyTorch's: heads of keys, and what stands before the softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from multihead.checks import wrong
from multihead.layer_rules import LayerRules
from multihead.layouts import Sizes
from multihead.parameters import parameter_shapes

NO_RULES = LayerRules()


def make_parameters(module: Any, sizes: Sizes, factory: dict[str, Any]) -> None:
    """Give a module parameters of sizes that PyTorch's own class does not know, uninitialised."""
    module.embed_dim, module.num_heads, module.head_dim = sizes.embed, sizes.heads, sizes.head
    module.kdim, module.vdim = sizes.kdim, sizes.vdim
    shapes = parameter_shapes(sizes)
    module._qkv_same_embed_dim = "in_proj_weight" in shapes
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
    for name in (*names, "bias_k", "bias_v"):
        shape = shapes.get(name)
        made = None if shape is None else Parameter(torch.empty(shape, **factory))
        module.register_parameter(name, made)
    module.out_proj = NonDynamicallyQuantizableLinear(
        sizes.queries, sizes.embed, bias=sizes.bias, **factory
    )
    module.add_zero_attn = sizes.zero_row


def beyond_torch(module: Any) -> bool:
    """Whether a layer of ours has options that PyTorch's does not have."""
    rules = any(module._rules.options().values())
    shared = module._parallel is not None
    return rules or module._has_sinks or module._key_heads is not None or shared


def refuse_without_engine(module: Any, query: Any, cache: Any = None) -> None:
    """Say what PyTorch's own implementation cannot compute.

    Raises
    ------
    ValueError
        If the layer has options beyond PyTorch's, or a cache.
    """
    if cache is None and not beyond_torch(module):
        return
    got = type(query).__name__
    if isinstance(query, torch.Tensor):
        got = f"{tuple(query.shape)} of {str(query.dtype)[6:]} on {query.device}"
    expected = "CPU tensors that fit the layer, as options beyond torch's are the engine's alone"
    raise wrong("query", expected, got)
