"""Our layer on NumPy arrays; bfloat16 on arrays that speak DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np

import multihead as mh
from multihead.cli.bench.contenders import Steps
from multihead.cli.bench.problem import Problem
from multihead.cli.elements import store, widen


def steps(problem: Problem) -> Steps:
    """Return the layer's calls."""
    mh.set_num_threads(problem.threads)
    _, _, width, heads = problem.shape
    layer = mh.MultiheadAttention(width, heads, batch_first=True, dtype=problem.dtype, seed=0)
    layer.load_state_dict(problem.parameters)
    x, d_out = problem.x, problem.d_out
    d_x = store(np.zeros(problem.shape[:3]), problem.dtype)

    def forward() -> tuple[Any, ...]:
        out, _ = layer.eval()(x, x, x, need_weights=False)
        return (out,)

    def training() -> tuple[Any, ...]:
        layer.zero_grad()
        out, _ = layer.train()(x, x, x, need_weights=False)
        layer.backward(d_out, out=(d_x, d_x, d_x))
        return out, d_x

    def read(found: Any) -> list[Any]:
        return [widen(a) for a in found]

    return Steps(forward, training, read)
