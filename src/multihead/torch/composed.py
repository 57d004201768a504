"""The layer in PyTorch's own operations, for second derivatives and function transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.functional import linear, pad

from multihead.arguments import AttentionOptions, AttentionTensors, LayerTensors
from multihead.reference.dropout import BIAS_KEY, ZERO_KEY, dropout_mask
from multihead.torch.calls import AttentionCall, LayerCall
from multihead.torch.packed import sequences
from multihead.torch.rotation import turned
from multihead.torch.rules import changed_scores, hidden_keys
from multihead.torch.tensors import in_float32

_Tensors = TypeVar("_Tensors", LayerTensors, AttentionTensors)


@in_float32
def composed(call: LayerCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute what the engine computes, dropout's mask included; every score is in memory.

    Parameters
    ----------
    call : LayerCall

    Returns
    -------
    out : Tensor
        In the layout of query.
    weights : Tensor or None
        In that of `engine.new_weights`.
    """
    tensors, options, offsets = call
    with torch.autocast("cpu", enabled=False):
        if offsets is None:
            return _dense(call, 0)
        outs, weights = [], []
        query, key, value = tensors.three
        steps = zip(offsets.query.tolist(), offsets.key.tolist(), strict=True)
        for n, ((q, k), (q_end, k_end)) in enumerate(pairwise(steps)):
            mask = tensors.mask
            cut = None if mask is None else mask[..., : q_end - q, : k_end - k]
            if cut is not None and cut.dim() == 3:
                cut = cut[n * options.num_heads : (n + 1) * options.num_heads]
            elif cut is not None and cut.dim() == 4 and cut.shape[0] > 1:
                cut = cut[n : n + 1]
            one = tensors._replace(
                query=query[None, q:q_end],
                key=key[None, k:k_end],
                value=value[None, k:k_end],
                mask=cut,
            )
            out, w = _dense(LayerCall(one, options, None), n)
            outs.append(out[0])
            if w is not None:
                weights.append(w.flatten())
        return torch.cat(outs), torch.cat(weights) if weights else None


def derivatives(
    function: Callable[[_Tensors], Sequence[torch.Tensor | None]],
    tensors: _Tensors,
    grads: Sequence[torch.Tensor | None],
    needed: AbstractSet[str],
) -> _Tensors:
    """Return the gradients of a function of tensors, where wanted with a graph of their own.

    Parameters
    ----------
    function : callable
        Takes the tensors.
    tensors : LayerTensors or AttentionTensors
    grads : sequence of Tensor or None
        Of the function's results.
    needed : set of str
        The tensors whose gradients to compute.
    """
    with torch.enable_grad():
        # apart from each other where one tensor was given several times
        copies = type(tensors)(*[x if x is None else x.view_as(x) for x in tensors])
        pairs = [
            (result, grad)
            for result, grad in zip(function(copies), grads, strict=True)
            if result is not None and grad is not None and result.requires_grad
        ]
    given = copies._asdict()
    wanted = [name for name, x in given.items() if name in needed and x is not None]
    found: dict[str, Any] = dict.fromkeys(given)
    if pairs and wanted:
        results = torch.autograd.grad(
            [result for result, _ in pairs],
            [given[name] for name in wanted],
            [grad for _, grad in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        found.update(zip(wanted, results, strict=True))
    return type(tensors)(**found)


def _dense(call: LayerCall, first: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute a batch whose sequences are number `first` and on, as dropout counts them."""
    t, options, _ = call
    query, key, value = t.three
    batch, tokens = (1, 0) if options.tokens_first else (0, 1)
    n, length, s = query.shape[batch], query.shape[tokens], key.shape[tokens]
    heads, padding, mask = options.num_heads, t.padding, t.mask
    if padding is not None:  # what it hides is not read
        unread = padding if padding.dtype == torch.bool else padding == -math.inf
        unread = (unread.mT if options.tokens_first else unread)[..., None]
        key, value = key.masked_fill(unread, 0.0), value.masked_fill(unread, 0.0)
    weights, biases = projections(call)

    def projected(x: torch.Tensor, i: int, extra: torch.Tensor | None) -> torch.Tensor:
        y = linear(x, weights[i], biases[i])
        y = y.transpose(0, 1) if options.tokens_first else y
        y = by_head(y)
        if i < 2 and t.cosine is not None and t.sine is not None:
            y = turned(y, t.cosine, t.sine, options.interleaved)
        if extra is not None:
            y = torch.cat([y, by_head(extra.reshape(1, 1, -1).expand(n, 1, -1))], 2)
        if options.zero_row and i > 0:
            y = pad(y, (0, 0, 0, 1))
        return y if i == 0 else y.repeat_interleave(heads // options.key_heads, 1)

    def by_head(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (-1, options.head_dim)).transpose(1, 2)

    q, k, v = projected(query, 0, None), projected(key, 1, t.bias_k), projected(value, 2, t.bias_v)
    rules = _rules_of(call, q, k[:, :, :s])
    if mask is not None:
        mask = _four_axes(mask, n, heads)
    parts = [mask, None if padding is None else padding[:, None, None]]
    hidden, added = _merged(parts, (n, 1, length, s), query.dtype)
    beside = hidden_keys(rules)
    hidden = hidden if beside is None else hidden | beside
    more = k.shape[2] - s
    if more:
        hidden = pad(hidden, (0, more))
        added = pad(added.expand(*added.shape[:-1], s), (0, more)) if added.dim() else added
    positions = [*range(s), *[BIAS_KEY] * (t.bias_k is not None), *[ZERO_KEY] * options.zero_row]
    attended, p, _ = attend(
        (q, k, v),
        hidden,
        added,
        1 / math.sqrt(q.shape[3]),
        (options.dropout_p, options.seed),
        (range(first, first + n), positions),
        rules,
    )
    out = linear(attended.transpose(1, 2).flatten(2), t.out_weight, t.out_bias)
    if options.tokens_first:
        out = out.transpose(0, 1)
    if options.average is None:
        return out, None
    return out, p.mean(1, keepdim=True) if options.average else p


def projections(call: LayerCall) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the weights of query, key and value, and their biases."""
    t, options, _ = call
    keys = options.key_heads * options.head_dim
    widths = [options.num_heads * options.head_dim, keys, keys]
    weights = (t.q_weight, t.k_weight, t.v_weight)
    return (
        weights if t.in_weight is None else t.in_weight.split(widths),
        (None,) * 3 if t.in_bias is None else t.in_bias.split(widths),
    )


def _rules_of(call: LayerCall, q: torch.Tensor, k: torch.Tensor) -> AttentionCall:
    """Return a layer's rules as those of attention on its heads."""
    t, o, _ = call
    options = AttentionOptions(
        o.dtype,
        o.causal,
        1.0,
        0.0,
        None,
        softcap=o.softcap,
        window_left=o.window_left,
        window_right=o.window_right,
    )
    return AttentionCall(AttentionTensors(q, k, k, None, t.alibi_slopes, t.sinks), options)


def _four_axes(mask: torch.Tensor, n: int, heads: int) -> torch.Tensor:
    if mask.dim() == 4:
        return mask
    return mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (n, heads))


def _merged(
    masks: Sequence[torch.Tensor | None], shape: Sequence[int], dtype: torch.dtype
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
    return hidden, added


def attend(
    inputs: Sequence[torch.Tensor],
    hidden: torch.Tensor,
    added: torch.Tensor,
    scale: float,
    dropout: tuple[float, Any],
    where: tuple[Sequence[int], Sequence[int]],
    rules: AttentionCall | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
    rules : AttentionCall, optional
        What else changes the scores, and has sinks.

    Returns
    -------
    out, weights, lse : Tensor
    """
    q, k, v = inputs
    # a query that sees nothing has weights of 0 and gradients of 0
    nothing = hidden.all(-1, keepdim=True)
    scores, sinks = _scores(q, k) * scale, None
    if rules is not None:
        scores, sinks = changed_scores(scores, rules), rules.tensors.sinks
    scores = (scores + added).masked_fill(hidden & ~nothing, -math.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    p = scores.softmax(-1)[..., : k.shape[2]].masked_fill(hidden, 0.0)
    lse = scores.logsumexp(-1).masked_fill(nothing[..., 0], -math.inf)
    probability, seed = dropout
    if seed is None:
        p = torch.nn.functional.dropout(p, probability)
    elif probability:
        batch, keys = (np.array(x, np.uint64) for x in where)
        at = (batch, np.arange(q.shape[1]), np.arange(q.shape[2]), keys)
        keep, factor = dropout_mask(seed, 0, *at, probability)
        p = p * torch.from_numpy(keep) * factor
    return _weighted(p, v, hidden), p, lse


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Multiply queries and keys; what is not finite in a key has no part in gradients."""
    finite = k.isfinite()
    clean = q @ k.where(finite, 0.0).transpose(2, 3)
    whole = (q @ k.transpose(2, 3)).detach()
    return torch.where(finite.all(-1)[..., None, :], clean, whole)


def _weighted(p: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Weigh values; what is not finite goes to the queries that see it, 0 times it to no other."""
    out = p @ v.where(v.isfinite(), 0.0)
    kinds = torch.cat([v == math.inf, v == -math.inf, v.isnan()], -1)
    seen = ((~hidden).to(p.dtype) @ kinds.to(p.dtype) > 0).chunk(3, -1)
    for there, value in zip(seen, (math.inf, -math.inf, math.nan), strict=True):
        out = out + torch.where(there, value, 0.0).to(out.dtype)
    return out


@in_float32
def composed_statistic(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute scaled dot-product attention, and the logarithms of the rows' sums."""
    if call.tensors.query_offsets is None:
        out, _, lse = _with_scores(call, 0)
        return out, lse
    found = [_with_scores(one, n) for n, one in enumerate(sequences(call))]
    if not found:
        query, width = call.tensors.query, call.tensors.value.shape[2]
        return query.new_empty((0, query.shape[1], width)), query.new_empty((0, query.shape[1]))
    outs, _, lses = zip(*found, strict=True)
    return tuple(torch.cat([x[0].transpose(0, 1) for x in parts]) for parts in (outs, lses))


def _with_scores(
    call: AttentionCall, first: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute out, weights and lse of sequences number `first` and on, as dropout counts them."""
    (q, k, v, mask, *_), options = call
    if mask is not None and mask.dtype == torch.bool and not options.true_hides:
        mask = ~mask
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    with torch.autocast("cpu", enabled=False):
        hidden, added = _merged([mask], (1, 1, q.shape[2], k.shape[2]), q.dtype)
        beside = hidden_keys(call)
        hidden = hidden if beside is None else hidden | beside
        dropout = options.dropout_p, options.seed
        where = range(first, first + q.shape[0]), range(k.shape[2])
        return attend((q, k, v), hidden, added, options.scale, dropout, where, call)


@in_float32
def composed_weights(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute scaled dot-product attention of a dense batch, and its weights."""
    out, weights, _ = _with_scores(call, 0)
    return out, weights


def composed_attention(call: AttentionCall) -> torch.Tensor:
    """Compute scaled dot-product attention."""
    return composed_statistic(call)[0]
