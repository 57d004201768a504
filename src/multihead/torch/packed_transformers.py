"""Packed sequences in Hugging Face's models: boundaries, or positions that restart."""

from __future__ import annotations

import math
from typing import Any

import torch

from multihead.torch.varlen import varlen_attn

_UNPACKED = "multihead_unpacked"  # an attribute of masks: they may say nothing of packing


def note_unpacked(mask: torch.Tensor, made_with: dict[str, Any]) -> None:
    """Mark a mask that says no more than causality and a window, and packing if it was seen.

    transformers sees no packing where there is a cache.
    """
    window = getattr(made_with.get("config"), "sliding_window", None)
    known = made_with.get("local_size") in (None, window) and not made_with.get("use_vmap")
    if known and made_with.get("attention_mask") is None and not torch.compiler.is_compiling():
        setattr(mask, _UNPACKED, True)


def boundaries(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return where the sequences of queries and keys begin, None where nothing is packed.

    They are the options ``cu_seq_lens_q`` and ``cu_seq_lens_k``, of which one is both; or, as in
    transformers' flash attention, where ``position_ids`` of a batch of one do not go on. These are
    read of causal models, beside no mask but one of transformers, and not under `torch.compile`.
    """
    of_queries, of_keys = options.get("cu_seq_lens_q"), options.get("cu_seq_lens_k")
    if of_queries is not None or of_keys is not None:
        of_queries = of_keys if of_queries is None else of_queries
        of_keys = of_queries if of_keys is None else of_keys
        same = of_keys is of_queries or (
            not torch.compiler.is_compiling() and torch.equal(of_keys, of_queries)
        )
        return of_queries, of_queries if same else of_keys
    positions = options.get("position_ids")
    n, _, length, _ = query.shape
    if not causal or n != 1 or length != key.shape[2] or torch.compiler.is_compiling():
        return None
    if mask is not None and not hasattr(mask, _UNPACKED):
        return None
    if not isinstance(positions, torch.Tensor) or positions.shape != (1, length):
        return None
    starts = (positions[0].diff() != 1).nonzero().flatten() + 1
    if not starts.numel():
        return None
    ends = torch.nn.functional.pad(starts, (1, 1))
    ends[-1] = length
    return ends, ends


def separated(mask: torch.Tensor, ends: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return a mask of all tokens, (N, 1 or H, L, S), in which no sequence sees another."""
    if not torch.compiler.is_compiling():
        first, last = (x[1:-1].long() for x in ends)
        inside = (first > 0) & (first < mask.shape[-2]) & (last > 0) & (last < mask.shape[-1])
        beside = mask[..., first[inside], last[inside] - 1]
        if not (beside if mask.dtype == torch.bool else beside != -math.inf).any():
            return mask  # it says so already
    of_queries, of_keys = (
        torch.searchsorted(x[1:].contiguous(), torch.arange(n, dtype=x.dtype), right=True)
        for x, n in zip(ends, mask.shape[-2:], strict=True)
    )
    together = of_queries[:, None] == of_keys
    return mask & together if mask.dtype == torch.bool else mask.where(together, -math.inf)


def attend_packed(
    inputs: tuple[torch.Tensor, ...],
    ends: tuple[torch.Tensor, torch.Tensor],
    causal: bool,
    window: Any,
    **options: Any,
) -> torch.Tensor:
    """Attend within each sequence; heads before tokens, and tokens first in the result.

    Parameters
    ----------
    inputs : tuple of Tensor
        (N, H, L, D), (N, Hk, S, D), (N, Hk, S, Dv); the batch is one row of tokens.
    ends : tuple of Tensor
    causal : bool
    window : int or None
        Keys that a query sees, its own place counted, after it too where it is not causal.
    **options
        Of `varlen_attn`.
    """
    query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in inputs)
    side = window - 1 if isinstance(window, int) and window > 0 else -1
    out = varlen_attn(
        query,
        key,
        value,
        *ends,
        query.shape[0],
        key.shape[0],
        window_size=(side, 0 if causal else side),
        enable_gqa=key.shape[1] != query.shape[1],
        **options,
    )
    n = inputs[0].shape[0]
    found: torch.Tensor = out.unflatten(0, (n, out.shape[0] // n))
    return found
