"""Whole models: every `torch.nn.MultiheadAttention` in one becomes ours, and back."""

from __future__ import annotations

from typing import Any

import torch

from multihead.torch.module import MultiheadAttention, around_fused_layers

_BEFORE = "_multihead_class_before"  # where an accelerated module remembers its class


def accelerate(model: torch.nn.Module) -> int:
    """Make every `torch.nn.MultiheadAttention` in a model ours, in place.

    Modules, parameters, buffers, hooks and state dicts stay the same objects, so optimizers,
    wrappers and checkpoints keep working. `torch.nn.Transformer` and its layers use our module in
    training and, around their own fused path, in eval.

    Parameters
    ----------
    model : torch.nn.Module
        Anything that contains attention layers, or one itself. Layers with a `forward` of their
        own are left alone.

    Returns
    -------
    int
        How many layers changed.

    Raises
    ------
    TypeError
        If `model` is not a module.

    See Also
    --------
    restore : The way back.

    Examples
    --------
    >>> import torch
    >>> from multihead.torch import accelerate, restore
    >>> model = torch.nn.Transformer(8, 2, 1, 2, 16, batch_first=True)
    >>> accelerate(model), accelerate(model), restore(model)
    (5, 0, 5)
    """
    changed = 0
    for module in _modules(model):
        kind = type(module)
        if not issubclass(kind, torch.nn.MultiheadAttention) or (
            kind.forward is not torch.nn.MultiheadAttention.forward
        ):
            continue
        module.__dict__[_BEFORE] = kind
        module.__class__ = _ours(kind)
        around_fused_layers(module.out_proj)
        changed += 1
    return changed


def restore(model: torch.nn.Module) -> int:
    """Undo `accelerate`.

    Parameters
    ----------
    model : torch.nn.Module
        Layers that were ours from the beginning stay as they are, and so do those that were
        wrapped or parametrized since `accelerate`.

    Returns
    -------
    int
        How many layers changed.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> from multihead.torch import accelerate, restore
    >>> layer = torch.nn.MultiheadAttention(8, 2)
    >>> accelerate(layer), restore(layer), restore(layer), type(layer).__module__
    (1, 1, 0, 'torch.nn.modules.activation')
    """
    changed = 0
    for module in _modules(model):
        before: Any = module.__dict__.get(_BEFORE)
        if before is None or type(module) is not _ours(before):  # or wrapped since then
            continue
        del module.__dict__[_BEFORE]
        module.__class__ = before
        around_fused_layers(module.out_proj, no_more=True)
        changed += 1
    return changed


def _modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return list(model.modules())


def _ours(kind: Any) -> Any:
    """Return our class, or one beside it for a derived class, the same each time."""
    if kind is torch.nn.MultiheadAttention:
        return MultiheadAttention
    if _DERIVED not in kind.__dict__:
        names = {"__module__": kind.__module__, "__reduce_ex__": _reduce}
        setattr(kind, _DERIVED, type(kind.__name__, (MultiheadAttention, kind), names))
    return kind.__dict__[_DERIVED]


_DERIVED = "_multihead_derived_class"


def _reduce(module: torch.nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickle a module of a derived class by the class that it had before."""
    state: Any = module
    state = state.__getstate__() if hasattr(module, "__getstate__") else module.__dict__
    return _made_again, (module.__dict__[_BEFORE],), state


def _made_again(kind: type) -> Any:
    derived: Any = _ours(kind)
    return derived.__new__(derived)
