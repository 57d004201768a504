"""Who runs: each contender turns a problem into a step, the call that is timed.

A training step is what a training loop does: clear the gradients (each side in its own default
way), forward, backward to the input and all parameters. Inference is one forward call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from benchmarks.einsum import EinsumStep, score_bytes
from benchmarks.problem import Array, Problem
from multihead.layer import MultiheadAttention

OURS = "multihead"
TORCH = "torch"
EINSUM = "einsum"

EINSUM_SCORE_BYTES = 300_000_000


class Step(Protocol):
    """One contender at work on one problem."""

    def __call__(self) -> None:
        """Do the work once."""

    def results(self) -> dict[str, Array]:
        """Return what the last call produced, by name: ``out``, ``weights``, ``d_x``, gradients."""


class NumpyLayerStep:
    """`multihead.MultiheadAttention` on NumPy arrays."""

    def __init__(self, problem: Problem) -> None:
        shape, self.mode = problem.case.shape, problem.case.mode
        self.layer = MultiheadAttention(
            shape.embed_dim,
            shape.num_heads,
            dropout=self.mode.dropout,
            batch_first=True,
            dtype=problem.dtype,
            seed=0,
        )
        self.layer.load_state_dict(problem.parameters)
        self.layer.train(self.mode.training)
        self.problem = problem
        self.d_x = np.zeros_like(problem.x)
        self.out: Array = problem.x
        self.weights: Array | None = None

    def __call__(self) -> None:
        """Run forward, and backward in training."""
        x = self.problem.x
        if self.mode.training:
            self.layer.zero_grad()
        self.out, self.weights = self.layer(
            x,
            x,
            x,
            key_padding_mask=self.problem.key_padding_mask,
            need_weights=self.mode.weights,
            is_causal=self.mode.causal,
        )
        if self.mode.training:
            self.layer.backward(self.problem.d_out, out=(self.d_x, self.d_x, self.d_x))

    def results(self) -> dict[str, Array]:
        """Return copies of what the last call produced, in float32."""
        found = {"out": self.out}
        if self.weights is not None:
            found["weights"] = self.weights
        if self.mode.training:
            found |= {"d_x": self.d_x, **self.layer.grads}
        return {name: np.array(value, np.float32) for name, value in found.items()}


class TorchStep:
    """`torch.nn.MultiheadAttention`, called the way that its documentation recommends.

    ``batch_first=True`` opens its fast path in evaluation. Causal calls pass the float mask of
    ``generate_square_subsequent_mask`` beside ``is_causal=True``, which takes torch to its fused
    causal kernel in evaluation and in training.
    """

    def __init__(self, problem: Problem) -> None:
        import torch

        shape, self.mode = problem.case.shape, problem.case.mode
        self.torch: Any = torch
        self.layer: Any = torch.nn.MultiheadAttention(
            shape.embed_dim,
            shape.num_heads,
            dropout=self.mode.dropout,
            batch_first=True,
            dtype=getattr(torch, problem.dtype),
        )
        self.layer.load_state_dict(
            {name: tensor(value) for name, value in problem.parameters.items()}
        )
        self.layer.train(self.mode.training)
        self.x: Any = tensor(problem.x.copy()).requires_grad_(self.mode.training)
        self.d_out: Any = tensor(problem.d_out)
        hidden = problem.key_padding_mask
        self.options: dict[str, Any] = {
            "key_padding_mask": None if hidden is None else torch.from_numpy(hidden),
            "need_weights": self.mode.weights,
        }
        if self.mode.causal:
            causal = torch.nn.Transformer.generate_square_subsequent_mask(
                shape.length, dtype=self.x.dtype
            )
            self.options |= {"attn_mask": causal, "is_causal": True}
        self.out: Any = None
        self.weights: Any = None

    def __call__(self) -> None:
        """Run forward, and backward in training."""
        if not self.mode.training:
            with self.torch.no_grad():
                self.out, self.weights = self.layer(self.x, self.x, self.x, **self.options)
            return
        self.layer.zero_grad()
        self.x.grad = None
        self.out, self.weights = self.layer(self.x, self.x, self.x, **self.options)
        self.out.backward(self.d_out)

    def results(self) -> dict[str, Array]:
        """Return copies of what the last call produced, in float32."""
        found: dict[str, Any] = {"out": self.out}
        if self.weights is not None:
            found["weights"] = self.weights
        if self.mode.training:
            found["d_x"] = self.x.grad
            found |= {name: value.grad for name, value in self.layer.named_parameters()}
        return {name: value.detach().float().numpy().copy() for name, value in found.items()}


def tensor(array: Array) -> Any:
    """View a NumPy array as PyTorch's tensor, bfloat16 too."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def enter(
    problem: Problem, face: str, compiling: bool = True
) -> tuple[dict[str, Callable[[], Step]], dict[str, str]]:
    """Tell who can run a problem, and why the others cannot.

    Parameters
    ----------
    problem : Problem
        The case's arrays.
    face : str
        Which face of ours runs: ``"numpy"``, or ``"half"`` for it in half precision.
    compiling : bool
        Whether there is time for peers that compile.

    Returns
    -------
    makers : dict of str to callable
        Each makes the step of one contender, ours first.
    absent : dict of str to str
        The reason for each contender that does not run.
    """
    makers: dict[str, Callable[[], Step]] = {OURS: lambda: FACES[face](problem)}
    absent: dict[str, str] = {}
    if find_spec("torch") is not None:
        makers[TORCH] = lambda: TorchStep(problem)
    else:
        absent[TORCH] = "not installed"
    if face == "half":
        if TORCH not in makers:
            return makers, absent
        from benchmarks import peers

        others, missing = peers.enter(problem, compiling)
        return makers | others, absent | missing
    size = score_bytes(problem)
    if not problem.case.mode.dense:
        absent[EINSUM] = "it has the plain modes only"
    elif size > EINSUM_SCORE_BYTES:
        absent[EINSUM] = f"one score array would take {size / 1e6:.0f} MB"
    else:
        makers[EINSUM] = lambda: EinsumStep(problem)
    return makers, absent


FACES: dict[str, Callable[[Problem], Step]] = {
    "numpy": NumpyLayerStep,
    "half": NumpyLayerStep,
    "modern": NumpyLayerStep,
    "jax": NumpyLayerStep,
}
# what the grid is computed in
DTYPES = {"numpy": "float32", "half": "bfloat16"}
