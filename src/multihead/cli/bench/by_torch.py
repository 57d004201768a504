"""PyTorch's layer, as its documentation recommends to call it."""

from __future__ import annotations

from typing import Any

import torch

from multihead.cli.bench.contenders import Steps
from multihead.cli.bench.problem import Problem


def steps(problem: Problem) -> Steps:
    """Return the module's calls."""
    torch.set_num_threads(problem.threads)
    kind = getattr(torch, problem.dtype)
    exact = "float64" if problem.dtype == "float64" else "float32"
    x, d_out, *values = (torch.from_numpy(a).to(kind) for a in problem.numpy(exact))
    _, _, width, heads = problem.shape
    layer = torch.nn.MultiheadAttention(width, heads, batch_first=True, dtype=kind)
    layer.load_state_dict(dict(zip(problem.parameters, values, strict=True)))
    watched = x.clone().requires_grad_()

    def forward() -> tuple[Any, ...]:
        with torch.no_grad():
            return (layer.eval()(x, x, x, need_weights=False)[0],)

    def training() -> tuple[Any, ...]:
        layer.train().zero_grad()
        watched.grad = None
        out, _ = layer(watched, watched, watched, need_weights=False)
        out.backward(d_out)
        return out, watched.grad

    def read(found: Any) -> list[Any]:
        return [a.detach().double().numpy() for a in found]

    return Steps(forward, training, read)
