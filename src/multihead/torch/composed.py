"""The layer in PyTorch's own operations, for second derivatives and function transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import linear, pad

from multihead.reference.dropout import BIAS_KEY, ZERO_KEY, dropout_mask
from multihead.torch.options import Offsets, Options, three


def composed(
    options: Options,
    tensors: Sequence[torch.Tensor | None],
    offsets: Offsets | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute what the engine computes, dropout's mask included; every score is in memory.

    Parameters
    ----------
    options : Options
    tensors : sequence of Tensor or None
        As `options.TENSORS` names them.
    offsets : Offsets or None
        Of a ragged batch.

    Returns
    -------
    out : Tensor
        In the layout of query.
    weights : Tensor or None
        In that of `engine.new_weights`.
    """
    with torch.autocast("cpu", enabled=False):
        if offsets is None:
            return _dense(options, tensors, 0)
        outs, weights = [], []
        steps = zip(offsets.query.tolist(), offsets.key.tolist(), strict=True)
        for n, ((q, k), (q_end, k_end)) in enumerate(pairwise(steps)):
            query, key, value = three(tensors)
            mask, *rest = tensors[4:]
            cut = None if mask is None else mask[..., : q_end - q, : k_end - k]
            if cut is not None and cut.dim() == 3:
                cut = cut[n * options.num_heads : (n + 1) * options.num_heads]
            elif cut is not None and cut.dim() == 4 and cut.shape[0] > 1:
                cut = cut[n : n + 1]
            inputs = query[None, q:q_end], key[None, k:k_end], value[None, k:k_end]
            out, w = _dense(options, [*inputs, None, cut, *rest], n)
            outs.append(out[0])
            if w is not None:
                weights.append(w.flatten())
        return torch.cat(outs), torch.cat(weights) if weights else None


def derivatives(
    function: Callable[[list[torch.Tensor | None]], Sequence[torch.Tensor | None]],
    tensors: Sequence[torch.Tensor | None],
    grads: Sequence[torch.Tensor | None],
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Return the gradients of a function of tensors, where wanted with a graph of their own.

    Parameters
    ----------
    function : callable
        Takes the tensors.
    tensors : sequence of Tensor or None
    grads : sequence of Tensor or None
        Of the function's results.
    needed : sequence of bool
        For each tensor, whether to compute its gradient.
    """
    with torch.enable_grad():
        # apart from each other where one tensor was given several times
        copies = [x if x is None else x.view_as(x) for x in tensors]
        pairs = [
            (result, grad)
            for result, grad in zip(function(copies), grads, strict=True)
            if result is not None and grad is not None and result.requires_grad
        ]
    wanted = [i for i, x in enumerate(copies) if needed[i] and x is not None]
    found: list[torch.Tensor | None] = [None] * len(copies)
    if pairs and wanted:
        results = torch.autograd.grad(
            [result for result, _ in pairs],
            [copies[i] for i in wanted],
            [grad for _, grad in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        for i, grad in zip(wanted, results, strict=True):
            found[i] = grad
    return found


def _dense(
    options: Options, tensors: Sequence[torch.Tensor | None], first: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute a batch whose sequences are number `first` and on, as dropout counts them."""
    in_weight, *separate, in_bias, bias_k, bias_v, out_weight, out_bias = tensors[5:]
    padding, mask = tensors[3:5]
    query, key, value = three(tensors)
    batch, tokens = (1, 0) if options.tokens_first else (0, 1)
    n, length, s, heads = (
        query.shape[batch],
        query.shape[tokens],
        key.shape[tokens],
        options.num_heads,
    )
    if padding is not None:  # what it hides is not read
        unread = padding if padding.dtype == torch.bool else padding == -math.inf
        unread = (unread.mT if options.tokens_first else unread)[..., None]
        key, value = key.masked_fill(unread, 0.0), value.masked_fill(unread, 0.0)
    weights = in_weight.chunk(3) if in_weight is not None else separate
    biases = in_bias.chunk(3) if in_bias is not None else (None,) * 3

    def projected(x: torch.Tensor, i: int, extra: torch.Tensor | None) -> torch.Tensor:
        y = linear(x, weights[i], biases[i])
        y = y.transpose(0, 1) if options.tokens_first else y
        if extra is not None:
            y = torch.cat([y, extra.reshape(1, 1, -1).expand(n, 1, -1)], 1)
        if options.zero_row and i > 0:
            y = pad(y, (0, 0, 0, 1))
        return y.unflatten(2, (heads, -1)).transpose(1, 2)

    q, k, v = projected(query, 0, None), projected(key, 1, bias_k), projected(value, 2, bias_v)
    if mask is not None:
        mask = _four_axes(mask, n, heads)
    parts = [mask, None if padding is None else padding[:, None, None]]
    hidden, added = _merged(parts, (n, 1, length, s), options.causal, query.dtype)
    more = k.shape[2] - s
    if more:
        hidden = pad(hidden, (0, more))
        added = pad(added.expand(*added.shape[:-1], s), (0, more)) if added.dim() else added
    positions = [*range(s), *[BIAS_KEY] * (bias_k is not None), *[ZERO_KEY] * options.zero_row]
    attended, p = attend(
        (q, k, v),
        hidden,
        added,
        1 / math.sqrt(q.shape[3]),
        (options.probability, options.seed),
        (range(first, first + n), positions),
    )
    assert out_weight is not None
    out = linear(attended.transpose(1, 2).flatten(2), out_weight, out_bias)
    if options.tokens_first:
        out = out.transpose(0, 1)
    if options.average is None:
        return out, None
    return out, p.mean(1, keepdim=True) if options.average else p


def _four_axes(mask: torch.Tensor, n: int, heads: int) -> torch.Tensor:
    if mask.dim() == 4:
        return mask
    return mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (n, heads))


def _merged(
    masks: Sequence[torch.Tensor | None], shape: Sequence[int], causal: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what masks hide and what they add; in boolean ones true hides."""
    hidden = torch.zeros(tuple(shape), dtype=torch.bool, device="cpu")
    added = torch.zeros((), dtype=dtype, device="cpu")
    for mask in masks:
        if mask is None:
            continue
        hides = mask if mask.dtype == torch.bool else mask == -math.inf
        hidden = hidden | hides
        if mask.dtype != torch.bool:
            added = added + mask.masked_fill(hides, 0.0)
    if causal:
        hidden = hidden | torch.ones(tuple(shape[-2:]), dtype=torch.bool, device="cpu").triu(1)
    return hidden, added


def attend(
    inputs: Sequence[torch.Tensor],
    hidden: torch.Tensor,
    added: torch.Tensor,
    scale: float,
    dropout: tuple[float, int | None],
    where: tuple[Sequence[int], Sequence[int]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with q, k, v (N, H, tokens, features).

    Parameters
    ----------
    inputs : sequence of Tensor
    hidden, added : Tensor
        What the masks say of the scores (N, H, L, S), or broadcastable to that.
    scale : float
    dropout : tuple
        Probability and seed; no seed: PyTorch's own.
    where : tuple
        The positions in the batch, and of the keys, as dropout counts them.

    Returns
    -------
    out, weights : Tensor
    """
    q, k, v = inputs
    # a query that sees nothing has weights of 0 and gradients of 0
    nothing = hidden.all(-1, keepdim=True)
    scores = q @ k.transpose(2, 3) * scale + added
    p = scores.masked_fill(hidden & ~nothing, -math.inf).softmax(-1).masked_fill(hidden, 0.0)
    probability, seed = dropout
    if seed is None:
        p = torch.nn.functional.dropout(p, probability)
    elif probability:
        batch, keys = (np.array(x, np.uint64) for x in where)
        at = (batch, np.arange(q.shape[1]), np.arange(q.shape[2]), keys)
        keep, factor = dropout_mask(seed, 0, *at, probability)
        p = p * torch.from_numpy(keep) * factor
    return p @ v, p


def composed_attention(
    inputs: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    dropout: tuple[float, int | None],
) -> torch.Tensor:
    """Compute scaled dot-product attention; the mask has four axes, true attends."""
    q, k, _ = inputs
    if mask is not None and mask.dtype == torch.bool:
        mask = ~mask
    with torch.autocast("cpu", enabled=False):
        hidden, added = _merged([mask], (1, 1, q.shape[2], k.shape[2]), causal, q.dtype)
        where = (range(q.shape[0]), range(k.shape[2]))
        return attend(inputs, hidden, added, scale, dropout, where)[0]
