"""Random calls of the faces of BNNS and of PyTorch, for the net."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bnns_problem import Options, Problem
from multihead.torch import MultiheadAttention, scaled_dot_product_attention
from net_draws import Digest, Draws, mask_of, normal
from net_numpy import heads, lengths, load_parameters


def bnns_call(draws: Draws, digest: Digest) -> str:
    """One filter: forward without and with a cache, backward; every buffer, gaps too."""
    rng: Any = draws
    options = Options.draw(rng)
    if draws.flip(0.1):
        options.batch = draws.integers(8, 14)
    problem = Problem.make(rng, options)
    problem.seed = draws.integers(2**63)
    problem.create()
    for name in ("output", *problem.grads):  # so that gaps and what is not written count too
        slot = problem.slots["output"] if name == "output" else problem.grads[name]
        slot.keep_state()
    cached = draws.flip(0.6)
    for _ in range(1 + draws.flip(0.3)):
        problem.forward()
        digest.add(problem.slots["output"].buffer)
    if cached:
        problem.forward_with_cache()
        digest.add(problem.slots["output"].buffer)
    problem.backward(cached)
    digest.add([problem.grads[name].buffer for name in sorted(problem.grads)])
    return f"{options} {cached=}"


def tensor(x: Any, wanted: bool = True) -> torch.Tensor:
    """A leaf over an array's values."""
    made = torch.from_numpy(np.ascontiguousarray(x))
    return made.requires_grad_(wanted and made.is_floating_point())


def bits(*tensors: torch.Tensor | None) -> list[Any]:
    """Tensors, gradients mostly, as arrays."""
    return [None if x is None else x.detach().numpy() for x in tensors]


def torch_mask(draws: Draws, shape: tuple[int, ...], dtype: Any, true_hides: bool) -> Any:
    """A bool or float tensor; a float one with or without a gradient."""
    kind = draws.choice(["bool", "float"])
    return tensor(mask_of(draws, kind, shape, dtype, true_hides), draws.flip())


def make_module(draws: Draws, embed: int, h: int, dtype: Any, **options: Any) -> Any:
    """A module with options and parameters drawn."""
    module = MultiheadAttention(
        embed, h, dropout=draws.choice([0.0, 0.0, 0.3]), bias=draws.flip(0.75), **options
    ).to(torch.from_numpy(np.empty(0, dtype)).dtype)
    shapes = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    values = load_parameters(draws, shapes, dtype)
    module.load_state_dict({name: torch.from_numpy(x) for name, x in values.items()})
    torch.manual_seed(draws.integers(2**31))  # of dropout
    return module.train(draws.flip(0.85))


def module_call(draws: Draws, digest: Digest) -> str:
    """One call of the PyTorch module, and its backward through autograd."""
    dtype = np.dtype(draws.choice([np.float32, np.float64]))
    n, length, s = lengths(draws)
    n, length, s = max(n, 1), max(length, 1), max(s, 1)
    s = length if draws.flip() else s
    h, d = heads(draws, n * max(length, s))
    embed, batch_first = h * d, draws.flip()
    kdim = vdim = embed if draws.flip(0.7) else draws.integers(1, 40)
    extra = {"add_bias_kv": draws.flip(0.25), "add_zero_attn": draws.flip(0.25)}
    widths = {"kdim": kdim, "vdim": vdim, "batch_first": batch_first}
    module = make_module(draws, embed, h, dtype, **extra, **widths)

    def tokens(count: int, width: int) -> torch.Tensor:
        lead = (n, count) if batch_first else (count, n)
        return tensor(normal(draws, (*lead, width), dtype))

    query, key, value = tokens(length, embed), tokens(s, kdim), tokens(s, vdim)
    shared = draws.flip(0.4)
    if shared:
        value = key
        query = key if length == s and kdim == embed else query
    mask = padding = None
    if draws.flip():
        shape = draws.choice([(length, s), (n * h, length, s)])
        mask = torch_mask(draws, shape, dtype, True)
    if draws.flip(0.4):
        padding = torch_mask(draws, (n, s), dtype, True)
    if mask is not None and padding is not None and mask.dtype != padding.dtype:
        padding = None  # PyTorch's warning
    need, average, causal = draws.flip(), draws.flip(), draws.flip(0.35)
    out, weights = module(query, key, value, padding, need, mask, average, causal)
    digest.add(bits(out, weights))
    if module.training:
        d_out = tensor(normal(draws, tuple(out.shape), dtype), False)
        torch.autograd.backward([out], [d_out])
        leaves = [query, key, value, mask, padding, *module.parameters()]
        digest.add([None if x is None else bits(x.grad) for x in leaves])
    return f"{module} {dtype} {n=} {length=} {s=} {shared=} {need=} {average=} {causal=}"


def nested_call(draws: Draws, digest: Digest) -> str:
    """One call of the module on jagged NestedTensors."""
    n = draws.integers(2, 9)
    counts = [draws.integers(1, draws.choice([9, 70])) for _ in range(n)]
    h, d = heads(draws, sum(counts))
    module = make_module(draws, h * d, h, np.dtype(np.float32), batch_first=True)
    values = tensor(normal(draws, (sum(counts), h * d), np.float32))
    steps = torch.tensor([sum(counts[:i]) for i in range(n + 1)])
    x = torch.nested.nested_tensor_from_jagged(values, steps)
    out, _ = module(x, x, x, need_weights=False)
    digest.add(bits(out.values()))
    if module.training:
        d_out = tensor(normal(draws, tuple(values.shape), np.float32), False)
        torch.autograd.backward([out.values()], [d_out])
        digest.add(bits(values.grad, *(p.grad for p in module.parameters())))
    return f"{module} {counts} {module.training=}"


def torch_attention_call(draws: Draws, digest: Digest) -> str:
    """One call of PyTorch's functional face, and its backward."""
    dtype = np.dtype(draws.choice([np.float32, np.float64]))
    n, length, s = lengths(draws)
    n, length, s = max(min(n, 3), 1), max(length, 5), max(s, 1)
    h = draws.integers(1, 4)
    d, dv = draws.integers(1, 40), draws.integers(1, 40)
    q, k, v = (tensor(normal(draws, (n, h, *x), dtype)) for x in ((length, d), (s, d), (s, dv)))
    mask = None
    if draws.flip(0.6):
        shape = tuple(x if draws.flip(0.6) else 1 for x in (n, h, length, s))
        mask = torch_mask(draws, shape, dtype, False)
    p, causal = draws.choice([0.0, 0.0, 0.3]), draws.flip(0.35)
    torch.manual_seed(draws.integers(2**31))
    out = scaled_dot_product_attention(q, k, v, mask, p, causal, draws.choice([0.125, 0.3, 1.0]))
    digest.add(bits(out))
    torch.autograd.backward([out], [tensor(normal(draws, tuple(out.shape), dtype), False)])
    digest.add([None if x is None else bits(x.grad) for x in (q, k, v, mask)])
    return f"{dtype} {n=} {h=} {length=} {s=} {d=} {dv=} {mask is not None} {p=} {causal=}"
