"""What may run out of memory: calls of the torch module and functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import multihead.torch as mht
from memory_faults import Case, normal


def torch_module() -> Case:
    return step_of(lambda module: module)


def compiled_module() -> Case:
    """The operations that PyTorch's compiler calls: forward and backward."""
    return step_of(lambda module: torch.compile(module, fullgraph=True, backend="aot_eager"))


def step_of(called: Callable[[torch.nn.Module], Callable[..., Any]]) -> Any:
    """A module's forward and backward, through what is made of it."""
    made = mht.MultiheadAttention(24, 3, batch_first=True)
    attend = called(made)
    x = torch.from_numpy(normal(2, 70, 24)).requires_grad_()

    def call() -> Any:
        made.zero_grad()
        x.grad = None
        out, weights = attend(x, x, x)
        (out.sum() + weights.square().sum()).backward()
        return [out.detach().numpy(), *(p.grad.numpy() for p in (x, *made.parameters()))]

    return Case(call, [x.detach().numpy(), *(p.detach().numpy() for p in made.parameters())])


def torch_attention() -> Case:
    q, k, v = (torch.from_numpy(normal(2, 2, 70, 9)).requires_grad_() for _ in range(3))

    def call() -> Any:
        for x in (q, k, v):
            x.grad = None
        out = mht.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.square().sum().backward()
        return [out.detach().numpy(), *(x.grad.numpy() for x in (q, k, v))]

    return Case(call, [x.detach().numpy() for x in (q, k, v)])


def half_module() -> Case:
    made = mht.MultiheadAttention(24, 3, batch_first=True, dtype=torch.bfloat16)
    x = torch.from_numpy(normal(2, 70, 24)).bfloat16().requires_grad_()

    def call() -> Any:
        made.zero_grad()
        x.grad = None
        out, _ = made(x, x, x, need_weights=False)
        out.float().square().sum().backward()
        return [
            y.float().numpy() for y in (out.detach(), x.grad, *(p.grad for p in made.parameters()))
        ]

    return Case(call, [x.detach().float().numpy()])


def decoding() -> Case:
    made = mht.MultiheadAttention(24, 3, batch_first=True).eval()
    x = torch.from_numpy(normal(2, 3, 24))

    @torch.no_grad()
    def call() -> Any:
        cache = made.new_kv_cache(2, 700)
        steps = [made(x, x, x, need_weights=False, kv_cache=cache)[0] for _ in "12"]
        return [step.numpy() for step in steps]

    return Case(call, [x.numpy()])


def attention_with_options() -> Case:
    q = torch.from_numpy(normal(2, 4, 70, 8)).requires_grad_()
    k, v = (torch.from_numpy(normal(2, 2, 90, 8)).requires_grad_() for _ in "kv")
    mask = torch.from_numpy(normal(2, 4, 70, 90)).requires_grad_()
    sinks = torch.from_numpy(normal(4)).requires_grad_()
    inputs = (q, k, v, mask, sinks)

    def call() -> Any:
        for x in inputs:
            x.grad = None
        out, lse = mht.scaled_dot_product_attention(
            q, k, v, mask, enable_gqa=True, window=(40, 30), sinks=sinks, return_lse=True
        )
        (out.square().sum() + lse.sum()).backward()
        return [x.detach().numpy() for x in (out, lse, *(x.grad for x in inputs))]

    return Case(call, [x.detach().numpy() for x in inputs])


def packed_sequences() -> Case:
    q, k, v = (torch.from_numpy(normal(90, 4, 8)).requires_grad_() for _ in "qkv")
    ends = torch.tensor([0, 20, 90], dtype=torch.int32)

    def call() -> Any:
        for x in (q, k, v):
            x.grad = None
        out = mht.varlen_attn(q, k, v, ends, ends, 70, 70)
        out.square().sum().backward()
        return [x.detach().numpy() for x in (out, q.grad, k.grad, v.grad)]

    return Case(call, [x.detach().numpy() for x in (q, k, v)])
