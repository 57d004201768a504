"""The layer in PyTorch's own operations, for second derivatives and function transforms."""

from __future__ import annotations

import math

import numpy as np
import torch

from multihead.reference.dropout import BIAS_KEY, ZERO_KEY, dropout_mask
from multihead.torch.options import Options


def composed(
    options: Options,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding: torch.Tensor | None,
    mask: torch.Tensor | None,
    *params: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute what the engine computes, dropout's mask included; every score is in memory.

    Parameters
    ----------
    options : Options
    query, key, value : Tensor
        (N, tokens, features), or (tokens, N, features) as the options say.
    padding, mask : Tensor or None
        (N, S); (L, S) or (N * H, L, S).
    *params : Tensor or None
        in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias, bias_k, bias_v,
        out_proj.weight, out_proj.bias.

    Returns
    -------
    out : Tensor
        In the layout of the inputs.
    weights : Tensor or None
        (N, L, S'), or (N, H, L, S') for each head.
    """
    in_weight, *three, in_bias, bias_k, bias_v, out_weight, out_bias = params
    if options.tokens_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    n, length, _ = query.shape
    s, heads = key.shape[1], options.num_heads
    weights = in_weight.chunk(3) if in_weight is not None else three
    biases = in_bias.chunk(3) if in_bias is not None else (None,) * 3

    def projected(x: torch.Tensor, i: int, extra: torch.Tensor | None) -> torch.Tensor:
        y = torch.nn.functional.linear(x, weights[i], biases[i])
        if extra is not None:
            y = torch.cat([y, extra.reshape(1, 1, -1).expand(n, 1, -1)], 1)
        if options.zero_row and i > 0:
            y = torch.nn.functional.pad(y, (0, 0, 0, 1))
        return y.unflatten(2, (heads, -1)).transpose(1, 2)

    q, k, v = projected(query, 0, None), projected(key, 1, bias_k), projected(value, 2, bias_v)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])

    hidden = torch.zeros((n, 1, length, s), dtype=torch.bool)
    added = torch.zeros((), dtype=query.dtype)
    if mask is not None:
        mask = mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (n, heads))
    for part in (mask, None if padding is None else padding[:, None, None]):
        if part is None:
            continue
        hides = part if part.dtype == torch.bool else part == -math.inf
        hidden = hidden | hides
        if part.dtype != torch.bool:
            added = added + part.masked_fill(hides, 0.0)
    if options.causal:
        hidden = hidden | torch.ones((length, s), dtype=torch.bool).triu(1)
    more = k.shape[2] - s
    hidden = torch.nn.functional.pad(hidden, (0, more))
    if added.dim():
        added = torch.nn.functional.pad(added.expand(*added.shape[:-1], s), (0, more))
    # a query that sees nothing has weights of 0 and gradients of 0
    nothing = hidden.all(-1, keepdim=True)
    p = (scores + added).masked_fill(hidden & ~nothing, -math.inf).softmax(-1)
    p = p.masked_fill(hidden, 0.0)

    probability, seed, counter = options.dropout
    if probability:
        positions = [*range(s), *[BIAS_KEY] * (bias_k is not None), *[ZERO_KEY] * options.zero_row]
        where = (np.arange(n), np.arange(heads), np.arange(length), np.array(positions, np.uint64))
        keep, scale = dropout_mask(seed, counter, *where, probability)
        p = p * torch.from_numpy(keep) * scale
    out = torch.nn.functional.linear((p @ v).transpose(1, 2).flatten(2), out_weight, out_bias)
    if options.tokens_first:
        out = out.transpose(0, 1)
    if options.average is None:
        return out, None
    return out, p.mean(1) if options.average else p
