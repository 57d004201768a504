"""Packed sequences in Hugging Face's models: boundaries, or positions that restart."""

from __future__ import annotations

import math
from typing import Any

import torch

from multihead.torch.varlen import varlen_attn

_MADE_HERE = "multihead_made_here"  # an attribute of masks


def note_made(mask: torch.Tensor, made_with: dict[str, Any]) -> None:
    """Note of a mask that it says no more than causality, a window, and packing if it was seen.

    transformers sees no packing where there is a cache.
    """
    window = getattr(made_with.get("config"), "sliding_window", None)
    known = made_with.get("local_size") in (None, window) and not made_with.get("use_vmap")
    if known and made_with.get("attention_mask") is None and not torch.compiler.is_compiling():
        setattr(mask, _MADE_HERE, True)


def made_here(mask: torch.Tensor) -> bool:
    """Whether `note_made` has noted so of a mask; nothing is known while compiling."""
    return not torch.compiler.is_compiling() and hasattr(mask, _MADE_HERE)


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
    if mask is not None and not made_here(mask):
        return None
    if not isinstance(positions, torch.Tensor) or positions.shape != (1, length):
        return None
    starts = (positions[0].diff() != 1).nonzero().flatten() + 1
    if not starts.numel():
        return None
    ends = torch.nn.functional.pad(starts, (1, 1))
    ends[-1] = length
    return ends, ends


def separated(
    mask: torch.Tensor,
    ends: tuple[torch.Tensor, torch.Tensor],
    sizes: tuple[int, int, int],
    made_here: bool,
) -> torch.Tensor:
    """Return a mask, broadcastable to (N, H, L, S), in which no sequence sees another.

    Parameters
    ----------
    mask : Tensor
    ends : tuple of Tensor
        Counted through the whole batch.
    sizes : tuple of int
        N, L, S.
    made_here : bool
        Whether the mask is one of causality, windows and packing: then a sequence's first query
        that does not see the key before its own sees none of those before.
    """
    n, queries, keys = sizes
    one = n == 1 and ends[0] is ends[1] and mask.shape[-2:] == (queries, keys)
    if made_here and one:
        first = ends[0][1:-1].long()
        first = first[(first > 0) & (first < min(queries, keys))]
        if not mask[..., first, first - 1].any():
            return mask  # it says so already
    of_queries, of_keys = (
        torch.searchsorted(x[1:].contiguous(), torch.arange(n * size, dtype=x.dtype), right=True)
        for x, size in zip(ends, (queries, keys), strict=True)
    )
    together = of_queries.view(n, 1, queries, 1) == of_keys.view(n, 1, 1, keys)
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
