"""Calls that `torch.fx` traces: they become leaves, as PyTorch's own are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Proxy
from torch.fx.proxy import TraceError


def is_symbolic(inputs: tuple[Any, Any, Any]) -> bool:
    """Whether query, key or value stands for a value in a graph that is made."""
    query, key, value = inputs
    return isinstance(query, Proxy) or isinstance(key, Proxy) or isinstance(value, Proxy)


def as_leaf(
    called: torch.nn.Module | Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any] | None = None,
) -> Any:
    """Put one call of a module or function into the graph.

    Raises
    ------
    TraceError
        If the module is not within what is traced.
    """
    tracer = next(x.tracer for x in arguments if isinstance(x, Proxy))
    if not isinstance(called, torch.nn.Module):
        return tracer.create_proxy("call_function", called, arguments, options or {})
    path = next((name for name, x in tracer.root.named_modules() if x is called), "")
    if not path:
        raise TraceError(
            "multihead.torch.MultiheadAttention is a leaf of a graph: trace a module that holds it"
        )
    return tracer.create_proxy("call_module", path, arguments, {})
