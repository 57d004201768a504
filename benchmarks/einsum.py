"""Attention as one writes it in NumPy: every score in memory, one einsum for each product."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.problem import Array, Problem

_einsum = partial(np.einsum, optimize=True)


def score_bytes(problem: Problem) -> int:
    """Return the size of one ``(N, H, L, L)`` float32 array of scores."""
    shape = problem.case.shape
    return 4 * shape.batch * shape.num_heads * shape.length**2


class EinsumStep:
    """Multi-head self-attention without masks, forward and backward."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.found: dict[str, Array] = {}

    def __call__(self) -> None:
        """Run forward, and backward in training."""
        shape, parameters = self.problem.case.shape, self.problem.parameters
        n, length, embed_dim = self.problem.x.shape
        heads = (n, length, 3, shape.num_heads, shape.head_dim)
        scale = np.float32(shape.head_dim**-0.5)
        x = self.problem.x.reshape(n * length, embed_dim)

        # forward
        projected = x @ parameters["in_proj_weight"].T + parameters["in_proj_bias"]
        q, k, v = np.moveaxis(projected.reshape(heads), 2, 0)
        p = scale * _einsum("nlhd,nshd->nhls", q, k)
        p = np.exp(p - p.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        attended = _einsum("nhls,nshd->nlhd", p, v).reshape(x.shape)
        out = attended @ parameters["out_proj.weight"].T + parameters["out_proj.bias"]
        self.found = {"out": out.reshape(n, length, embed_dim)}
        if not self.problem.case.mode.training:
            return

        # backward
        d_out = self.problem.d_out.reshape(x.shape)
        d_attended = (d_out @ parameters["out_proj.weight"]).reshape(heads[:2] + heads[3:])
        d_s = _einsum("nlhd,nshd->nhls", d_attended, v)
        d_v = _einsum("nhls,nlhd->nshd", p, d_attended)
        d_s = scale * p * (d_s - _einsum("nhls,nhls->nhl", p, d_s)[..., None])
        d_q = _einsum("nhls,nshd->nlhd", d_s, k)
        d_k = _einsum("nhls,nlhd->nshd", d_s, q)
        d_projected = np.stack([d_q, d_k, d_v], axis=2).reshape(n * length, 3 * embed_dim)
        self.found |= {
            "d_x": (d_projected @ parameters["in_proj_weight"]).reshape(n, length, embed_dim),
            "in_proj_weight": d_projected.T @ x,
            "in_proj_bias": d_projected.sum(axis=0),
            "out_proj.weight": d_out.T @ attended,
            "out_proj.bias": d_out.sum(axis=0),
        }

    def results(self) -> dict[str, Array]:
        """Return what the last call produced."""
        return self.found
