"""A call on packed sequences as dense calls, for the ways that know no offsets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from multihead.arguments import AttentionTensors
from multihead.torch.calls import AttentionCall


def lengths(tensors: AttentionTensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many queries and keys each sequence has."""
    return tensors.query_offsets.diff(), tensors.key_offsets.diff()


def pairs(tensors: AttentionTensors) -> int:
    """Return how many pairs of a query and a key there are in a head."""
    if tensors.query_offsets is None:
        n, _, queries, _ = tensors.query.shape
        return int(n * queries * tensors.key.shape[2])
    queries, keys = lengths(tensors)
    return int((queries * keys).sum())


def sequences(call: AttentionCall) -> Iterator[AttentionCall]:
    """Yield each sequence as a batch of one."""
    t, options = call
    steps = zip(t.query_offsets.tolist(), t.key_offsets.tolist(), strict=True)
    for n, ((q, k), (q_end, k_end)) in enumerate(pairwise(steps)):
        mask, slopes = t.mask, t.alibi_slopes
        if mask is not None:
            mask = mask[n : n + 1] if mask.shape[0] > 1 else mask
            mask = mask[:, :, : q_end - q, : k_end - k]
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[n : n + 1]
        one = AttentionTensors(
            t.query[None, q:q_end].transpose(1, 2),
            t.key[None, k:k_end].transpose(1, 2),
            t.value[None, k:k_end].transpose(1, 2),
            mask,
            slopes,
            t.sinks,
            query_positions=None if t.query_positions is None else t.query_positions[n : n + 1],
            key_lengths=None if t.key_lengths is None else t.key_lengths[n : n + 1],
        )
        yield AttentionCall(one, options)
