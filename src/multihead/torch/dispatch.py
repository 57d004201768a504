"""Who computes a call: the engine, an operation that PyTorch traces, or PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad


class Ways(NamedTuple):
    """The ways to compute a function; each takes a call.

    Attributes
    ----------
    engine : callable
        At once, without gradients.
    function : callable
        At once, as an autograd function.
    operation : callable
        As an operation of PyTorch's, whose seed is a tensor.
    composed : callable
        In PyTorch's own operations, with dropout of PyTorch's own.
    exported : callable
        As a program that runs where there is no operation of ours; not for ragged batches.
    """

    engine: Callable[[Any], Any]
    function: Callable[[Any], Any]
    operation: Callable[[Any], Any]
    composed: Callable[[Any], Any]
    exported: Callable[[Any], Any]


def compute(call: Any, ways: Ways) -> Any:
    """Compute a call in the way that fits what PyTorch does at the moment."""
    if torch.compiler.is_exporting() and not _ragged(call):
        return ways.exported(call)
    if transformed():
        return ways.composed(call)
    options = call.options
    if traced():
        if options.dropout_p:
            call = call._replace(options=options._replace(seed=_draw_seed()))
        return ways.operation(call)
    if options.dropout_p:
        call = call._replace(options=options._replace(seed=int(_draw_seed())))
    return ways.function(call) if needs_grad(call.tensors) else ways.engine(call)


def _ragged(call: Any) -> bool:
    offsets = getattr(call, "offsets", None)
    return offsets is not None or getattr(call.tensors, "query_offsets", None) is not None


def needs_grad(tensors: tuple[Any, ...]) -> bool:
    """Whether a gradient of any of the tensors may be asked for."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def traced() -> bool:
    """Whether PyTorch's compiler, exporter or a dispatch mode follows the operations."""
    return bool(torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0)


def transformed() -> bool:
    """Whether PyTorch transforms a function through its own operations."""
    return bool(
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
    )


def _draw_seed() -> torch.Tensor:
    """Draw dropout's seed from PyTorch's generator: int64, no axes."""
    return torch.randint(2**63 - 1, (), device="cpu")
