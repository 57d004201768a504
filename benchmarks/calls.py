"""The attention calls of a model in training, each by itself. Imports PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch

from benchmarks.contenders import TORCH, Step
from benchmarks.models import Batch
from benchmarks.problem import Array
from benchmarks.twins import twins
from benchmarks.workloads import Workload


@dataclass
class Call:
    """A call that a model makes of an attention layer.

    Attributes
    ----------
    layer : str
        The first layer that is called so.
    inputs : tuple of Tensor
        Query, key and value as they reach the layer; the same tensor where they are one.
    options : dict
        Masks and all else that is passed by name.
    d_out : Tensor
        A gradient of the output, normal.
    count : int
        How many layers are called so.
    """

    layer: str
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    d_out: Any
    count: int = 0


def _kind(inputs: Sequence[Any], options: dict[str, Any]) -> Hashable:
    """Say what tells calls apart: shapes, which tensors are one, options."""
    query, key, value = inputs
    shapes = tuple((*x.shape, *x.stride()) for x in inputs)
    told = (
        (name, (x.shape, x.dtype) if isinstance(x, torch.Tensor) else x)
        for name, x in sorted(options.items())
    )
    return (shapes, key is query, value is key, *told)


def calls(model: Any, batch: Batch) -> list[Call]:
    """Return the distinct attention calls of one forward pass in training, with what they get."""
    found: dict[Hashable, Call] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            d_out = torch.randn_like(inputs[0])
            call = Call(name, inputs, options, d_out)
            found.setdefault(_kind(inputs, options), call).count += 1

        return hook

    hooks = [
        module.register_forward_pre_hook(before(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.MultiheadAttention)
    ]
    try:
        with torch.no_grad():
            model.train()(*batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


class AttentionStep:
    """A model's attention alone: forward, and backward to its inputs and all its parameters.

    Each distinct call is made as often as the model makes it, over `shared`, what the counts have
    in common.
    """

    def __init__(self, model: Any, made: Sequence[Call]) -> None:
        model.train()
        self.shared = gcd(*(call.count for call in made))
        self.calls = [(model.get_submodule(call.layer), call, _leaves(call)) for call in made]
        self.outs: list[Any] = [None for _ in made]

    def __call__(self) -> None:
        """Make the calls."""
        for i, (layer, call, inputs) in enumerate(self.calls):
            for _ in range(call.count // self.shared):
                layer.zero_grad()
                for x in inputs:
                    x.grad = None
                self.outs[i], _ = layer(*inputs, **call.options)
                self.outs[i].backward(call.d_out)

    def results(self) -> dict[str, Array]:
        """Return the output of each call, and the gradients of its inputs and parameters."""
        found: dict[str, Any] = {}
        for out, (layer, call, inputs) in zip(self.outs, self.calls, strict=True):
            tensors = {"out": out.detach()}
            tensors |= {
                f"d_{part}": x.grad
                for part, x in zip(("query", "key", "value"), inputs, strict=True)
            }
            tensors |= {part: x.grad for part, x in layer.named_parameters()}
            found |= {f"{call.layer}.{part}": x.numpy() for part, x in tensors.items()}
        return found


def _leaves(call: Call) -> tuple[Any, ...]:
    """Return the inputs as leaves of a graph of their own; those that are one stay one."""
    leaves = {id(x): x.detach().requires_grad_() for x in call.inputs}
    return tuple(leaves[id(x)] for x in call.inputs)


def attention_alone(work: Workload) -> dict[str, Step]:
    """Make the step of each twin, on what reaches PyTorch's layers."""
    models = twins(work)
    made = calls(models[TORCH], models[TORCH].draw())
    return {name: AttentionStep(model, made) for name, model in models.items()}
