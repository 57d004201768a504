"""Inputs of a case, rounded to its dtype, and what each function makes of them. Imports PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import multihead.torch
from benchmarks.accuracy.cases import BATCH, EMBED_DIM, HEAD_DIM, HEADS, MODULE, Case
from benchmarks.contenders import OURS, TORCH

BIAS = 0.1

Results = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Tensors of the case's dtype.

    Attributes
    ----------
    inputs : sequence of Tensor
        query, key and value, three different ones: (N, L, E), or (N, H, L, D) without a layer.
    d_out : Tensor
        The gradient of the output.
    parameters : dict of str to Tensor
        The layer's; none for the function.
    """

    inputs: Sequence[Any]
    d_out: Any
    parameters: dict[str, Any]

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> Problem:
        """Draw the tensors of a case.

        Examples
        --------
        >>> problem = Problem.of(Case("function", "bfloat16", 5, 10))
        >>> problem.d_out.shape, problem.d_out.dtype
        (torch.Size([1, 2, 5, 64]), torch.bfloat16)
        """
        generator = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, case.dtype)

        def normal(*size: int, scale: float = 1.0) -> Any:
            return (scale * torch.randn(size, generator=generator)).to(dtype)

        # a score is a product of two, of query and key
        share = case.logits**0.5
        if case.function != MODULE:
            heads = (BATCH, HEADS, case.length, HEAD_DIM)
            inputs = normal(*heads, scale=share), normal(*heads, scale=share), normal(*heads)
            return cls(inputs, normal(*heads), {})
        size = (BATCH, case.length, EMBED_DIM)
        scales = torch.tensor([share, share, 1.0]).repeat_interleave(EMBED_DIM)
        weight = normal(3 * EMBED_DIM, EMBED_DIM, scale=EMBED_DIM**-0.5).float()
        bias = normal(3 * EMBED_DIM, scale=BIAS).float()
        parameters = {
            "in_proj_weight": (scales[:, None] * weight).to(dtype),
            "in_proj_bias": (scales * bias).to(dtype),
            "out_proj.weight": normal(EMBED_DIM, EMBED_DIM, scale=EMBED_DIM**-0.5),
            "out_proj.bias": normal(EMBED_DIM, scale=BIAS),
        }
        return cls((normal(*size), normal(*size), normal(*size)), normal(*size), parameters)

    def exact(self) -> Problem:
        """Return the same values in float64."""
        return Problem(
            [x.double() for x in self.inputs],
            self.d_out.double(),
            {name: x.double() for name, x in self.parameters.items()},
        )


def computed(problem: Problem, who: str) -> Results:
    """Return the output and every gradient, as ours or PyTorch's come, widened to float64.

    Parameters
    ----------
    problem : Problem
    who : str
        `OURS` or `TORCH`.
    """
    compute = _layer if problem.parameters else _function
    return {name: x.detach().double() for name, x in compute(problem, who).items()}


_LAYERS: dict[str, Any] = {
    OURS: multihead.torch.MultiheadAttention,
    TORCH: torch.nn.MultiheadAttention,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    OURS: multihead.torch.scaled_dot_product_attention,
    TORCH: torch.nn.functional.scaled_dot_product_attention,
}


def _layer(problem: Problem, who: str) -> Results:
    leaves = [x.clone().requires_grad_() for x in problem.inputs]
    layer = _LAYERS[who](EMBED_DIM, HEADS, batch_first=True, dtype=problem.d_out.dtype)
    layer.load_state_dict(problem.parameters)
    out, _ = layer(*leaves, need_weights=False)
    out.backward(problem.d_out)
    grads = {name: x.grad for name, x in layer.named_parameters()}
    return {"out": out, **_gradients(leaves), **grads}


def _function(problem: Problem, who: str) -> Results:
    leaves = [x.clone().requires_grad_() for x in problem.inputs]
    out = _FUNCTIONS[who](*leaves)
    out.backward(problem.d_out)
    return {"out": out, **_gradients(leaves)}


def _gradients(leaves: list[Any]) -> Results:
    return {name: x.grad for name, x in zip(("query", "key", "value"), leaves, strict=True)}
