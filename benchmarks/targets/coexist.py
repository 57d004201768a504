"""PyTorch and we in one process: two thread pools must not stand in each other's way."""

from __future__ import annotations

from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np

from benchmarks.cases import SHAPES, Shape
from benchmarks.targets.target import Reached, Run, Target
from multihead.layer import MultiheadAttention

DEPTH = 4


class _Model:
    """Torch's linear layers and ours in turn, in inference, and each kind alone."""

    def __init__(self, shape: Shape) -> None:
        import torch

        self.torch: Any = torch
        torch.manual_seed(0)
        size = (shape.batch, shape.length, shape.embed_dim)
        self.x = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        self.linears: list[Any] = [
            torch.nn.Linear(shape.embed_dim, shape.embed_dim) for _ in range(DEPTH)
        ]
        self.layers = [
            MultiheadAttention(shape.embed_dim, shape.num_heads, batch_first=True, seed=i).eval()
            for i in range(DEPTH)
        ]

    def alternating(self) -> None:
        with self.torch.no_grad():
            x = self.x
            for linear, layer in zip(self.linears, self.layers, strict=True):
                x = linear(self.torch.from_numpy(x)).numpy()
                x = layer(x, x, x, need_weights=False)[0]

    def only_linears(self) -> None:
        with self.torch.no_grad():
            x = self.x
            for linear in self.linears:
                x = linear(self.torch.from_numpy(x)).numpy()

    def only_layers(self) -> None:
        x = self.x
        for layer in self.layers:
            x = layer(x, x, x, need_weights=False)[0]


def _coexistence(name: str, shape: Shape) -> Target:
    def measure(run: Run) -> Reached:
        if find_spec("torch") is None:
            return Reached(None, "torch is not installed")
        model = _Model(shape)
        seconds = run.race(
            {"both": model.alternating, "torch": model.only_linears, "ours": model.only_layers}
        )
        rounds = zip(seconds["both"], seconds["torch"], seconds["ours"], strict=True)
        value = median(both / (theirs + ours) for both, theirs, ours in rounds)
        alone = ", ".join(f"{who} {1e3 * median(seconds[who]):.3g} ms" for who in seconds)
        return Reached(value, alone)

    return Target(
        name,
        f"{DEPTH} torch.nn.Linear and {DEPTH} of ours in turn at {shape}: time / sum of both alone",
        1.05,
        measure,
        at_most=True,
        quick=shape.length <= 128,
    )


TARGETS = (
    _coexistence("coexist-small", SHAPES[0]),
    _coexistence("coexist-middle", SHAPES[1]),
    _coexistence("coexist-large", SHAPES[3]),
)
