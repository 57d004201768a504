"""Whole models: the attention layers and functions of PyTorch's in one become ours, and back."""

from __future__ import annotations

import warnings

import torch

from multihead.torch import kinds
from multihead.torch.callers import (
    attending_modules,
    has_code_of_its_own,
    has_forward,
    is_put_on,
)
from multihead.torch.explain import attention_rows
from multihead.torch.holders import Held, attention_layers
from multihead.torch.module import MultiheadAttention, around_fused_layers
from multihead.torch.redirecting import plain, redirecting, redirects
from multihead.torch.report import Report


def accelerate(model: torch.nn.Module, functions: bool = False, *, verbose: bool = False) -> Report:
    """Make every `torch.nn.MultiheadAttention` in a model ours, in place.

    Modules, parameters, buffers, hooks and state dicts stay the same objects, so optimizers,
    wrappers and checkpoints keep working. `torch.nn.Transformer` and its layers use our module in
    training and, around their own fused path, in eval.

    Parameters
    ----------
    model : torch.nn.Module
        Anything that contains attention layers, or one itself. Layers with a `forward` of their
        own are left alone, their class's or put on the instance, and so are those that the module
        around them never calls.
    functions : bool
        Whether modules whose code calls `torch.nn.functional.scaled_dot_product_attention` or
        `torch.nn.functional.multi_head_attention_forward` call ours: their methods that do run
        within `attention`. Where no code is found that does, it is all of the model's forward, for
        calls may be hidden.
    verbose : bool
        Whether to print the report.

    Returns
    -------
    Report
        A number, how many modules changed; ``changed``, ``left`` and ``functions`` say which, what
        is not on the engine and why, and where functions are redirected. Printed, it says all this.

    Warns
    -----
    UserWarning
        If none changed and none is ours, or if a module reads a layer's parameters and never
        calls it.

    Raises
    ------
    TypeError
        If `model` is not a module.

    See Also
    --------
    restore : The way back.
    explain : What computes each layer, and why.
    attention : The scope, for any code.

    Examples
    --------
    >>> import torch
    >>> from multihead.torch import accelerate, restore
    >>> model = torch.nn.Transformer(8, 2, 1, 2, 16, batch_first=True)
    >>> accelerate(model), accelerate(model), restore(model)
    (5, 0, 5)
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, q, k, v):
    ...         return torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> print(accelerate(torch.nn.ModuleList([Attention(), Attention()]), functions=True))
    2 modules changed, 0 left
    changed:
    0  Attention  engine: PyTorch's functions are redirected
    1  Attention  engine: PyTorch's functions are redirected
    """
    layers = attention_layers(model)
    unread = [x for x in layers if x.reader is not None and not _is_ours(x)]
    if unread:
        names = ", ".join(x.name for x in unread)
        warnings.warn(
            f"{unread[0].reader} reads the parameters of its attention layer and never calls it; "
            f"left as they are: {names}",
            stacklevel=2,
        )
    changed = set()
    for layer in layers:
        if layer.reader is not None or layer.has_own_forward or _is_ours(layer):
            continue
        layer.module.__class__ = kinds.ours(layer.module)
        around_fused_layers(layer.module.out_proj)
        changed.add(layer.name)
    if functions:
        changed |= _redirect(model)
    rows = attention_rows(model)
    report = Report(
        [row for row in rows if row.name in changed],
        [row for row in rows if not row.on_engine],
        [name for name, module in model.named_modules() if redirects(module)],
    )
    if not report and not report.functions and not any(map(_is_ours, layers)):
        calls = any(x.methods for x in attending_modules(model))
        warnings.warn(
            f"accelerate() changed nothing: no torch.nn.MultiheadAttention is called in "
            f"{type(model).__name__}"
            + (", but PyTorch's functions, which functions=True redirects" if calls else "")
            + "; multihead.torch.explain(model) says what computes attention",
            stacklevel=2,
        )
    if verbose:
        print(report)
    return report


def _redirect(model: torch.nn.Module) -> set[str]:
    """Put the calls of PyTorch's functions into the scope, and say in which modules."""
    changed = set()
    for name, module, methods in attending_modules(model):
        if methods and not redirects(module) and not is_put_on(module, methods):
            module.__class__ = redirecting(module, methods)
            changed.add(name)
    if not attention_rows(model) and has_code_of_its_own(model) and has_forward(model):
        model.__class__ = redirecting(model, ("forward",))
        changed.add("")
    return changed


def _is_ours(layer: Held) -> bool:
    return isinstance(layer.module, MultiheadAttention)


def restore(model: torch.nn.Module) -> int:
    """Make every layer of ours in a model PyTorch's, in place: undo `accelerate`.

    Calls of PyTorch's functions are no longer redirected.

    Parameters
    ----------
    model : torch.nn.Module
        Layers that were made as ours become `torch.nn.MultiheadAttention` too. Those of a class
        that was derived from ours, or wrapped since `accelerate`, stay as they are.

    Returns
    -------
    int
        How many modules changed.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> from multihead.torch import MultiheadAttention, restore
    >>> layer = MultiheadAttention(8, 2)
    >>> restore(layer), restore(layer), type(layer).__module__
    (1, 0, 'torch.nn.modules.activation')
    """
    changed = 0
    for layer in attention_layers(model):
        before = kinds.theirs(layer.module)
        if before is None:
            continue
        layer.module.__class__ = before
        around_fused_layers(layer.module.out_proj, no_more=True)
        changed += 1
    for module in model.modules():
        if redirects(module):
            module.__class__ = plain(module)
            changed += 1
    return changed
