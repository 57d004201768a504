"""The engine's forward and backward on tensors in CPU memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from multihead import _native
from multihead.torch.options import PARAMETERS, Offsets, Options, three
from multihead.torch.tensors import engine_reads


def new_weights(
    options: Options,
    tensors: Sequence[torch.Tensor | None],
    offsets: Offsets | None,
) -> torch.Tensor | None:
    """Make memory for the weights: (N, H or 1, L, S'), ragged: one after another."""
    if options.average is None:
        return None
    query, key, _ = three(tensors)
    heads = 1 if options.average else options.num_heads
    extra = (tensors[10] is not None) + options.zero_row
    if offsets is not None:
        pairs = offsets.query.diff() * (offsets.key.diff() + extra)
        return torch.empty(heads * int(pairs.sum()), dtype=query.dtype, device="cpu")
    n, length = (1, 0) if options.tokens_first else (0, 1)
    shape = query.shape[n], heads, query.shape[length], key.shape[length] + extra
    return torch.empty(shape, dtype=query.dtype, device="cpu")


def forward(
    options: Options,
    tensors: Sequence[torch.Tensor | None],
    offsets: Offsets | None,
    keep: bool | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Run the engine; the tensors are those of `options.TENSORS`.

    Parameters
    ----------
    options : Options
    tensors : sequence of Tensor or None
    offsets : Offsets or None
        Of a ragged batch, whose inputs are (total, features).
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
    query = tensors[0]
    assert query is not None
    out = torch.empty(query.shape, dtype=query.dtype, device="cpu")
    weights = new_weights(options, tensors, offsets)
    to_out, to_weights = engine_reads((out, weights))
    steps = None if offsets is None else engine_reads(offsets)
    if isinstance(keep, torch.Tensor):
        (keep,) = engine_reads((keep,))
    cache = _native.tensor_forward(options, engine_reads(tensors), steps, to_out, to_weights, keep)
    return out, weights, None if cache is None else torch.from_numpy(cache)


def backward(
    options: Options,
    tensors: Sequence[torch.Tensor | None],
    offsets: Offsets | None,
    cache: torch.Tensor,
    d_out: torch.Tensor | None,
    d_weights: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Return the gradients of the tensors.

    Parameters
    ----------
    options, tensors, offsets
        Those of the forward call.
    cache : Tensor
        What that kept.
    d_out, d_weights : Tensor or None
        Gradients of its results.
    needed : sequence of bool
        For each tensor, whether to compute its gradient.
    """
    grads: list[torch.Tensor | None] = [None] * len(tensors)
    for i, x in enumerate(tensors):
        if x is None or not needed[i]:
            continue
        added_to = i >= PARAMETERS.start
        grads[i] = torch.zeros_like(x) if added_to else torch.empty_like(x)
    query = tensors[0]
    assert query is not None
    if d_out is None:
        d_out = query.new_zeros(query.shape)
    (kept,) = engine_reads((cache,))
    steps = None if offsets is None else engine_reads(offsets)
    of_out, of_weights = engine_reads((d_out, d_weights))
    _native.tensor_backward(
        options, engine_reads(tensors), steps, kept, of_out, of_weights, engine_reads(grads)
    )
    return grads
