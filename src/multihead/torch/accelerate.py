"""Whole models: every `torch.nn.MultiheadAttention` in one becomes ours, and back."""

from __future__ import annotations

import warnings

import torch

from multihead.torch import kinds
from multihead.torch.holders import Held, attention_layers
from multihead.torch.module import MultiheadAttention, around_fused_layers


def accelerate(model: torch.nn.Module) -> int:
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

    Returns
    -------
    int
        How many layers changed.

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

    Examples
    --------
    >>> import torch
    >>> from multihead.torch import accelerate, restore
    >>> model = torch.nn.Transformer(8, 2, 1, 2, 16, batch_first=True)
    >>> accelerate(model), accelerate(model), restore(model)
    (5, 0, 5)
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
    changed = 0
    for layer in layers:
        if layer.reader is not None or layer.has_own_forward or _is_ours(layer):
            continue
        layer.module.__class__ = kinds.ours(layer.module)
        around_fused_layers(layer.module.out_proj)
        changed += 1
    if not changed and not any(map(_is_ours, layers)):
        warnings.warn(
            f"accelerate() changed nothing: no torch.nn.MultiheadAttention is called in "
            f"{type(model).__name__}; multihead.torch.explain(model) says what computes attention",
            stacklevel=2,
        )
    return changed


def _is_ours(layer: Held) -> bool:
    return isinstance(layer.module, MultiheadAttention)


def restore(model: torch.nn.Module) -> int:
    """Make every layer of ours in a model PyTorch's, in place: undo `accelerate`.

    Parameters
    ----------
    model : torch.nn.Module
        Layers that were made as ours become `torch.nn.MultiheadAttention` too. Those of a class
        that was derived from ours, or wrapped since `accelerate`, stay as they are.

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
    return changed
