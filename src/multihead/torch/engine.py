"""The engine's forward and backward on tensors in CPU memory."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch

from multihead import _native
from multihead.arguments import LayerTensors
from multihead.torch.calls import LayerCall
from multihead.torch.tensors import HALF, dtype_of, engine_reads

# of what is not a parameter the engine writes the gradient, to that of a parameter it adds
_WRITTEN = frozenset({"query", "key", "value", "padding", "mask"})


def new_out(call: LayerCall) -> torch.Tensor:
    """Make memory for the output, shaped like query."""
    layout = torch.contiguous_format
    return torch.empty_like(call.tensors.query, dtype=dtype_of(call), memory_format=layout)


def new_weights(call: LayerCall) -> torch.Tensor | None:
    """Make memory for the weights: (N, H or 1, L, S'), ragged: one after another."""
    tensors, options, offsets = call
    if options.average is None:
        return None
    query, key, _ = tensors.three
    heads = 1 if options.average else options.num_heads
    extra = (tensors.bias_k is not None) + options.zero_row
    if offsets is not None:
        pairs = offsets.query.diff() * (offsets.key.diff() + extra)
        return torch.empty(heads * int(pairs.sum()), dtype=dtype_of(call), device="cpu")
    n, length = (1, 0) if options.tokens_first else (0, 1)
    shape = query.shape[n], heads, query.shape[length], key.shape[length] + extra
    return torch.empty(shape, dtype=dtype_of(call), device="cpu")


def forward(
    call: LayerCall, keep: bool | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Run the engine.

    Parameters
    ----------
    call : LayerCall
    keep : bool or Tensor
        Whether to keep what backward needs, or memory for it.

    Returns
    -------
    out : Tensor
        Shaped like query.
    weights : Tensor or None
        As `new_weights` makes them.
    cache : Tensor or None
        What backward needs, in new memory if `keep` is True.
    """
    tensors, options, offsets = call
    dtype = dtype_of(call)
    out = new_out(call)
    weights = new_weights(call)
    to_out, to_weights = engine_reads((out, weights))
    steps = None if offsets is None else engine_reads(offsets)
    if isinstance(keep, torch.Tensor):
        (keep,) = engine_reads((keep,))
    cache = _native.layer_forward(options, engine_reads(tensors), steps, to_out, to_weights, keep)
    kept = None if cache is None else torch.frombuffer(cache, dtype=dtype)
    return out, weights, kept


def backward(
    call: LayerCall,
    cache: torch.Tensor,
    grads: tuple[torch.Tensor | None, torch.Tensor | None],
    needed: AbstractSet[str],
) -> LayerTensors:
    """Return the gradients of the tensors.

    Parameters
    ----------
    call : LayerCall
        That of forward.
    cache : Tensor
        What that kept.
    grads : tuple of Tensor or None
        Gradients of its results.
    needed : set of str
        The tensors whose gradients to compute.
    """
    tensors, options, offsets = call
    wide = _summed_wide(tensors, options.zero_row)
    made = LayerTensors(
        *[
            None
            if x is None or name not in needed
            else torch.empty_like(x, dtype=torch.float32 if name in wide else None)
            if name in _WRITTEN
            else torch.zeros_like(x)
            for name, x in zip(tensors._fields, tensors, strict=True)
        ]
    )
    d_out, d_weights = grads
    if d_out is None:
        d_out = new_out(call).zero_()
    steps = None if offsets is None else engine_reads(offsets)
    kept, d_out, d_weights = engine_reads((cache, d_out, d_weights))
    _native.layer_backward(
        options, engine_reads(tensors), steps, kept, d_out, d_weights, engine_reads(made)
    )
    if not wide:
        return made
    dtypes = [None if x is None else x.dtype for x in tensors]
    rounded = [None if x is None else x.to(dtype) for x, dtype in zip(made, dtypes, strict=True)]
    return LayerTensors._make(rounded)


def _summed_wide(tensors: LayerTensors, zero_row: bool) -> frozenset[str]:
    """Name the tensors of half precision whose gradients are sums of several, rounded once.

    Where all tokens are keys, and no others are, the engine sums one input's three in one pass.
    """
    summed = {"padding": tensors.padding, "mask": tensors.mask}
    one_input = tensors.key is None and tensors.value is None
    no_others = tensors.padding is None and tensors.bias_k is None and not zero_row
    if tensors.key is None:
        summed["query"] = None if one_input and no_others else tensors.query
    elif tensors.value is None:
        summed["key"] = tensors.key
    return frozenset(name for name, x in summed.items() if x is not None and x.dtype in HALF)
