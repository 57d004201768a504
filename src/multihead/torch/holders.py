"""Attention layers in a model, and how the modules around them use them."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

# of a layer that is called, other modules need nothing of these
_READ = {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
_READ |= {"bias_k", "bias_v", "out_proj"}


class Held(NamedTuple):
    """An attention layer in a model.

    Attributes
    ----------
    name : str
        Where it is.
    module : torch.nn.MultiheadAttention
    reader : str or None
        The class that holds it, if that reads its parameters and never calls it.
    """

    name: str
    module: Any
    reader: str | None

    @property
    def has_own_forward(self) -> bool:
        """Whether something else than PyTorch's forward, or ours, is called."""
        kinds = [x for x in type(self.module).__mro__ if "forward" in vars(x)]
        known = ("torch.nn.modules.activation", "multihead.torch.module")
        return "forward" in vars(self.module) or kinds[0].__module__ not in known


def attention_layers(model: torch.nn.Module) -> list[Held]:
    """Return the attention layers of a model.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    readers: dict[int, list[str | None]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if isinstance(child, torch.nn.MultiheadAttention):
                holder: Any = type(parent)
                only = _only_read(holder, name)
                readers.setdefault(id(child), []).append(holder.__name__ if only else None)
    return [
        Held(name, module, None if None in (found := readers.get(id(module), [None])) else found[0])
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.MultiheadAttention)
    ]


@functools.cache
def _only_read(kind: Any, name: str) -> bool:
    """Whether the methods of a class read the parameters of ``self.name`` and never call it."""
    read = False
    for method in _methods(kind):
        inside = {id(x.value): x.attr for x in ast.walk(method) if isinstance(x, ast.Attribute)}
        for x in ast.walk(method):
            if not (isinstance(x, ast.Attribute) and x.attr == name and _is_self(x.value)):
                continue
            of_it = inside.get(id(x))
            if of_it is None or of_it == "forward":
                return False
            read = read or of_it in _READ
    return read


def _is_self(x: ast.expr) -> bool:
    return isinstance(x, ast.Name) and x.id == "self"


def _methods(kind: Any) -> Iterator[ast.AST]:
    """Yield the methods of a class and its bases, those aside that set it up."""
    for base in kind.__mro__:
        if base.__module__ == "torch.nn.modules.module" or base is object:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # there is no source
            continue
        for x in ast.walk(tree):
            if isinstance(x, ast.FunctionDef) and "init" not in x.name and "reset" not in x.name:
                yield x
