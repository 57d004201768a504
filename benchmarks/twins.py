"""One model with PyTorch's attention and with ours: the steps that race. Imports PyTorch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.contenders import OURS, TORCH, Step
from benchmarks.models import Batch, build
from benchmarks.problem import Array
from benchmarks.suite import check
from benchmarks.workloads import Workload
from multihead.torch import accelerate

LEARNING_RATE = 3e-4
BATCHES = 5


def twins(work: Workload) -> dict[str, Any]:
    """Build a workload's model twice from the same parameters; one of them is accelerated.

    Raises
    ------
    RuntimeError
        If a layer was left as it was: then PyTorch would race itself.
    """
    theirs = build(work)
    ours = copy.deepcopy(theirs)
    layers = sum(isinstance(module, torch.nn.MultiheadAttention) for module in theirs.modules())
    if (changed := accelerate(ours)) != layers:
        raise RuntimeError(f"{work}: accelerate changed {changed} of {layers} attention layers")
    return {OURS: ours, TORCH: theirs}


class Inference:
    """A model in eval, without gradients."""

    def __init__(self, model: Any, batch: Batch) -> None:
        self.model, self.batch = model.eval(), batch
        self.out: Any = None

    def __call__(self) -> None:
        """Run forward."""
        with torch.no_grad():
            self.out = self.model(*self.batch.inputs)

    def results(self) -> dict[str, Array]:
        """Return the output, at the positions that are real."""
        real = self.batch.real
        return {"out": (self.out if real is None else self.out[real]).numpy()}


class Training:
    """A model in a training loop: clear the gradients, forward, loss, backward, AdamW."""

    def __init__(self, model: Any, batch: Batch) -> None:
        self.model, self.batch = model.train(), batch
        self.optimizer: Any = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        self.loss: Any = None

    def __call__(self) -> None:
        """Run one step."""
        self.optimizer.zero_grad()
        self.loss = self.batch.loss(self.model(*self.batch.inputs))
        self.loss.backward()
        self.optimizer.step()

    def results(self) -> dict[str, Array]:
        """Return the loss and the gradients of all parameters."""
        grads = {name: value.grad.numpy() for name, value in self.model.named_parameters()}
        return {"loss": self.loss.detach().numpy(), **grads}


def both(kind: Callable[[Any, Batch], Step], work: Workload) -> dict[str, Step]:
    """Make one kind of step of each twin, on one batch."""
    models = twins(work)
    batch = models[TORCH].draw()
    return {name: kind(model, batch) for name, model in models.items()}


def agreed(steps: Mapping[str, Step], work: Workload) -> Mapping[str, Step]:
    """Run steps of a workload without dropout once and return them.

    Raises
    ------
    benchmarks.measure.DisagreementError
        If their results differ by more than 1e-3 of the largest entry.
    """
    with warnings.catch_warnings():
        # PyTorch's own, of its fast path for padding
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        for step in steps.values():
            step()
    check(steps, work)
    return steps


def losses(work: Workload, steps: int) -> dict[str, list[float]]:
    """Train both twins on a few batches in turn; return the loss of each step."""
    models = twins(work)
    batches = [models[TORCH].draw() for _ in range(BATCHES)]
    found: dict[str, list[float]] = {}
    for name, model in models.items():
        step = Training(model, batches[0])
        found[name] = []
        for i in range(steps):
            step.batch = batches[i % BATCHES]
            step()
            found[name].append(step.loss.item())
    return found
