"""Others that a user of half precision on the CPU can choose, in inference. Imports PyTorch.

Each is given the case's own numbers, and its parameters before the clock runs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from benchmarks.contenders import Step, tensor
from benchmarks.problem import Array, Problem

BY_HAND, COMPILED, OPENVINO = "torch by hand", "torch compiled", "openvino"
PEERS = (BY_HAND, COMPILED, OPENVINO)


class Attention(torch.nn.Module):
    """A case's layer in operations of PyTorch's: two linear ones, and its fused attention."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        shape = problem.case.shape
        self.causal = problem.case.mode.causal
        self.heads = (shape.num_heads, shape.head_dim)
        self.before = torch.nn.Linear(shape.embed_dim, 3 * shape.embed_dim)
        self.after = torch.nn.Linear(shape.embed_dim, shape.embed_dim)
        given = {name: tensor(value) for name, value in problem.parameters.items()}
        for linear, name in ((self.before, "in_proj_{}"), (self.after, "out_proj.{}")):
            for part in ("weight", "bias"):
                value = torch.nn.Parameter(given[name.format(part)], requires_grad=False)
                setattr(linear, part, value)
        hidden = problem.key_padding_mask
        seen = None if hidden is None else torch.from_numpy(~hidden)[:, None, None]
        self.register_buffer("seen", seen)

    def forward(self, x: Any) -> Any:
        """Return (N, L, E) for (N, L, E)."""
        q, k, v = self.before(x).unflatten(-1, (3, *self.heads)).permute(2, 0, 3, 1, 4).unbind()
        attend = torch.nn.functional.scaled_dot_product_attention
        heads = attend(q, k, v, self.seen, is_causal=self.causal)
        return self.after(heads.transpose(1, 2).flatten(-2))


class ByHand:
    """`Attention`, run by PyTorch as it is, or compiled."""

    def __init__(self, problem: Problem, compiled: bool = False) -> None:
        self.run: Any = Attention(problem).eval()
        if compiled:
            # what was compiled for other cells counts, and past a limit nothing is compiled
            torch.compiler.reset()
            # weights are packed once, as inference allows
            self.run = torch.compile(self.run, options={"freezing": True})
        self.x = tensor(problem.x)
        self.out: Any = None

    def __call__(self) -> None:
        """Run forward."""
        with torch.no_grad():
            self.out = self.run(self.x)

    def results(self) -> dict[str, Array]:
        """Return a copy of the output, in float32."""
        return {"out": self.out.float().numpy().copy()}


class OpenVino:
    """`Attention` as OpenVINO compiles it, told to compute in the case's dtype."""

    def __init__(self, problem: Problem) -> None:
        import openvino

        x = tensor(problem.x).float()
        attention = Attention(problem).float().eval()
        if attention.seen is not None and len(x) == 1:
            # in a batch of one it misreads a mask that all queries share
            attention.seen = attention.seen.expand(-1, -1, problem.case.shape.length, -1)
        model = openvino.convert_model(attention, example_input=x)
        # so that it knows all sizes
        model.reshape(tuple(x.shape))
        options = {
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[problem.dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(model, "CPU", options)
        self.request: Any = compiled.create_infer_request()
        self.request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
        self.x = x  # its memory

    def __call__(self) -> None:
        """Run forward."""
        self.request.infer()

    def results(self) -> dict[str, Array]:
        """Return a copy of the output, in float32."""
        return {"out": np.array(self.request.get_output_tensor().data, np.float32)}


def enter(
    problem: Problem, compiling: bool
) -> tuple[dict[str, Callable[[], Step]], dict[str, str]]:
    """Tell which peers can run a problem, and why the others cannot; see `contenders.enter`."""
    mode = problem.case.mode
    if mode.training or mode.weights:
        return {}, dict.fromkeys(PEERS, "they have inference without weights only")
    makers: dict[str, Callable[[], Step]] = {BY_HAND: lambda: ByHand(problem)}
    absent: dict[str, str] = {}
    if compiling:
        makers[COMPILED] = lambda: ByHand(problem, compiled=True)
    else:
        absent[COMPILED] = "not in a quick run"
    if find_spec("openvino") is not None:
        makers[OPENVINO] = lambda: OpenVino(problem)
    else:
        absent[OPENVINO] = "not installed"
    return makers, absent
