"""Our class for each class of PyTorch's layer, and the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import parametrize

from multihead.torch.module import MultiheadAttention
from multihead.torch.options import beyond_torch

_OURS = "_multihead_ours"  # a class's own attributes: the class beside it, and that one's origin
_THEIRS = "_multihead_theirs"


def ours(module: torch.nn.Module) -> Any:
    """Return the class that puts a layer on the engine, its parametrizations kept."""
    return outside_in(module, type(module), _ours)


def theirs(module: torch.nn.Module) -> Any:
    """Return the class that a layer of ours has without the engine.

    None for classes of others, and for layers with options that only the engine knows.
    """
    if isinstance(module, MultiheadAttention) and beyond_torch(module):
        return None
    return outside_in(module, type(module), _theirs)


def outside_in(module: torch.nn.Module, kind: Any, change: Any) -> Any:
    """Change the class below that of parametrizations, which PyTorch makes for one module.

    That class owns the properties, and its first base is what `remove_parametrizations` returns
    to: both must stay true.
    """
    if not (parametrize.is_parametrized(module) and kind.__name__.startswith("Parametrized")):
        return change(kind)
    base = outside_in(module, kind.__bases__[0], change)
    if base is None:
        return None
    own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__", "__doc__")}
    return type(f"Parametrized{base.__name__}", (base,), own)


def _ours(kind: Any) -> Any:
    """Return our class, or one beside it for a derived class, the same each time."""
    if kind is torch.nn.MultiheadAttention:
        return MultiheadAttention
    if _OURS not in vars(kind):
        names = {"__module__": kind.__module__, "__reduce_ex__": _reduce, _THEIRS: kind}
        setattr(kind, _OURS, type(kind.__name__, (MultiheadAttention, kind), names))
    return vars(kind)[_OURS]


def _theirs(kind: Any) -> Any:
    if kind is MultiheadAttention:
        return torch.nn.MultiheadAttention
    return vars(kind).get(_THEIRS)


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    """Pickle a module of a derived class by the class that it is beside."""
    kind = next(vars(x)[_THEIRS] for x in type(module).__mro__ if _THEIRS in vars(x))
    return _made_again, (kind,), state_of(module)


def state_of(module: Any) -> Any:
    """Return what a module is pickled with; before Python 3.11 not every object says it."""
    return module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__


def _made_again(kind: type) -> Any:
    derived: Any = _ours(kind)
    return derived.__new__(derived)
