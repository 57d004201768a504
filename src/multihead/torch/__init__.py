"""Multi-head attention for PyTorch on the CPU: `torch.nn.MultiheadAttention` on our engine.

Import it explicitly; the package itself never imports PyTorch.

Examples
--------
>>> import torch
>>> from multihead.torch import MultiheadAttention
>>> layer = MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
>>> x = torch.randn(3, 5, 8, requires_grad=True)
>>> out, weights = layer(x, x, x, is_causal=True)
>>> out.sum().backward()
>>> tuple(out.shape), tuple(weights.shape), tuple(x.grad.shape)
((3, 5, 8), (3, 5, 5), (3, 5, 8))
"""

from __future__ import annotations

from multihead.torch import requires  # noqa: F401 (first: it checks PyTorch's version)
from multihead.torch.accelerate import accelerate, restore
from multihead.torch.context_parallel import context_parallel_attention
from multihead.torch.explain import explain
from multihead.torch.functional import scaled_dot_product_attention
from multihead.torch.module import MultiheadAttention
from multihead.torch.parallel import parallel
from multihead.torch.report import Report
from multihead.torch.scope import attention
from multihead.torch.transformers import register_transformers
from multihead.torch.varlen import varlen_attn

__all__ = [
    "MultiheadAttention",
    "Report",
    "accelerate",
    "attention",
    "context_parallel_attention",
    "explain",
    "parallel",
    "register_transformers",
    "restore",
    "scaled_dot_product_attention",
    "varlen_attn",
]
