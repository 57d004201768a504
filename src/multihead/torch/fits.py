"""Which calls of the layer the engine computes: what PyTorch would refuse is left to PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from multihead.torch.nested import longest, same_lengths
from multihead.torch.tensors import COMPUTED, HALF, NARROW, readable


def compute_dtype(
    module: torch.nn.MultiheadAttention,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    masks: tuple[torch.Tensor | None, torch.Tensor | None],
    params: Sequence[torch.Tensor | None],
    need_weights: bool,
) -> torch.dtype | None:
    """Return the dtype to compute in; None if the engine does not compute this call.

    Parameters
    ----------
    module : torch.nn.MultiheadAttention
    inputs : tuple of Tensor
        Query, key, value.
    masks : tuple of Tensor or None
        Of padding, of the scores.
    params : sequence of Tensor or None
    need_weights : bool
    """
    for x in (*inputs, *masks):
        if x is not None and not isinstance(x, torch.Tensor):
            return None
    if any(x is None for x in inputs) or not isinstance(module.dropout, (int, float)):
        return None
    dtype = inputs[0].dtype
    accepted: tuple[torch.dtype, ...] = (dtype,)
    if torch.is_autocast_enabled("cpu") and dtype in NARROW:
        accepted = NARROW
    elif dtype not in COMPUTED and dtype not in HALF:
        return None
    if not 0 <= module.dropout <= 1:
        return None
    for x in inputs:
        if x.dtype not in accepted or not readable(x):
            return None
    for p in params:
        if p is not None and (p.dtype not in accepted or not readable(p)):
            return None
    scores = _scores(module, *inputs)
    if scores is None or not _params_fit(module, params):
        return None
    if dtype in HALF and not need_weights:
        accepted = (*accepted, torch.float32)
    for mask in masks:
        if mask is None:
            continue
        if mask.dtype != torch.bool and mask.dtype not in accepted:
            return None
        if not readable(mask):
            return None
    padding, mask = masks
    if padding is not None and not _padding_fits(padding, scores, inputs[0]):
        return None
    if mask is not None and not _mask_fits(mask, scores):
        return None
    return torch.float64 if dtype == torch.float64 else torch.float32


def _params_fit(module: Any, params: Sequence[torch.Tensor | None]) -> bool:
    """Whether the parameters have the shapes that the module was made with."""
    e, heads = module.embed_dim, module.num_heads
    if heads <= 0 or e % heads:
        return False
    packed, *separate, in_bias, bias_k, bias_v, out_weight, out_bias = params
    if module._qkv_same_embed_dim:
        if packed is None or packed.shape != (3 * e, e):
            return False
    elif packed is not None or not all(
        x is not None and x.shape == (e, width)
        for x, width in zip(separate, (e, module.kdim, module.vdim), strict=True)
    ):
        return False
    if (bias_k is None) != (bias_v is None):
        return False
    shapes: Any = [(in_bias, (3 * e,)), (bias_k, (1, 1, e)), (bias_v, (1, 1, e))]
    shapes += [(out_weight, (e, e)), (out_bias, (e,))]
    return all(x is None or x.shape == shape for x, shape in shapes)


def _scores(module: Any, query: Any, key: Any, value: Any) -> tuple[int, ...] | None:
    """Return the shape (N, H, L, S) of the scores; None if the inputs do not fit."""
    rank = query.dim()
    if key.dim() != rank or value.dim() != rank or rank not in (2, 3):
        return None
    widths = module.embed_dim, module.kdim, module.vdim
    if (query.size(-1), key.size(-1), value.size(-1)) != widths:
        return None
    if query.is_nested or key.is_nested or value.is_nested:
        return _nested_scores(module, query, key, value)
    if key.shape[:-1] != value.shape[:-1]:
        return None
    if rank == 2:
        return 1, module.num_heads, query.shape[0], key.shape[0]
    batch, tokens = (0, 1) if module.batch_first else (1, 0)
    if key.shape[batch] != query.shape[batch]:
        return None
    return query.shape[batch], module.num_heads, query.shape[tokens], key.shape[tokens]


def _nested_scores(module: Any, query: Any, key: Any, value: Any) -> tuple[int, ...] | None:
    three = (query, key, value)
    if not module.batch_first or query.dim() != 3 or not all(x.is_nested for x in three):
        return None
    if len({x.size(0) for x in three}) != 1:
        return None
    if value is not key and not same_lengths(key, value):
        return None
    if torch.compiler.is_compiling():  # lengths are not known: no masks
        return query.size(0), module.num_heads, -1, -1
    return query.size(0), module.num_heads, longest(query), longest(key)


def _padding_fits(padding: torch.Tensor, scores: tuple[int, ...], query: torch.Tensor) -> bool:
    n, _, _, source = scores
    if query.is_nested:
        return False
    return tuple(padding.shape) == ((source,) if query.dim() == 2 else (n, source))


def _mask_fits(mask: torch.Tensor, scores: tuple[int, ...]) -> bool:
    n, heads, length, source = scores
    shape = tuple(mask.shape)
    if len(shape) == 4:
        return all(a in (1, b) for a, b in zip(shape, scores, strict=True))
    return shape in ((length, source), (n * heads, length, source))
