"""The layer and attention as programs that are exported: PyTorch's operations alone.

So a program runs, is saved and is translated (ONNX has an Attention too) where multihead is not.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from multihead.torch.calls import AttentionCall, LayerCall
from multihead.torch.composed import composed, composed_attention, projections
from multihead.torch.tensors import in_float32

# at import: our function may take the place of PyTorch's
_theirs = functional.scaled_dot_product_attention


@in_float32
def exported_layer(call: LayerCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute a dense call of the layer; sizes may be symbols."""
    t, options, _ = call
    limits = (options.softcap, options.window_left + 1, options.window_right + 1)
    grouped = options.key_heads != options.num_heads
    if grouped or any(limits) or any(x is not None for x in (t.sinks, t.alibi_slopes, t.cosine)):
        whole: tuple[torch.Tensor, torch.Tensor | None] = composed(call)
        return whole
    query, key, value = t.three
    if options.tokens_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    if t.padding is not None:  # what it hides is not read
        unread = _hides(t.padding)[..., None]
        key, value = key.masked_fill(unread, 0.0), value.masked_fill(unread, 0.0)

    # 1. Projections, and the keys that every sequence has more.
    weights, biases = projections(call)
    three = (query, key, value)
    q, k, v = (functional.linear(*x) for x in zip(three, weights, biases, strict=True))
    if t.bias_k is not None:
        k, v = (
            torch.cat([x, b.expand(x.shape[0], 1, -1)], 1)
            for x, b in ((k, t.bias_k), (v, t.bias_v))
        )
    if options.zero_row:
        k, v = (functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
    more = (t.bias_k is not None) + options.zero_row
    q, k, v = (x.unflatten(2, (options.num_heads, -1)).transpose(1, 2) for x in (q, k, v))

    # 2. Attention.
    masks = [] if t.mask is None else [_four_axes(t.mask, options.num_heads)]
    masks += [] if t.padding is None else [t.padding[:, None, None]]
    causal = options.causal
    if causal and (masks or more or options.average is not None):
        length, source = query.shape[1], key.shape[1]
        masks.append(torch.ones(length, source, dtype=torch.bool, device="cpu").triu(1))
        causal = False
    seen = _merged(masks, q.dtype)
    if more and seen is not None:  # those keys are seen by every query
        visible = True if seen.dtype == torch.bool else 0.0
        seen = functional.pad(seen.expand(*seen.shape[:-1], key.shape[1]), (0, more), value=visible)
    if options.average is None:
        out, p = (
            _attended((q, k, v), seen, causal, 1 / math.sqrt(q.shape[3]), options.dropout_p),
            None,
        )
    else:
        out, p = _with_weights((q, k, v), seen, options.dropout_p)

    # 3. The output's projection.
    out = functional.linear(out.transpose(1, 2).flatten(2), t.out_weight, t.out_bias)
    out = out.transpose(0, 1) if options.tokens_first else out
    return out, p.mean(1, keepdim=True) if p is not None and options.average else p


@in_float32
def exported_attention(call: AttentionCall) -> torch.Tensor:
    """Compute scaled dot-product attention; sizes may be symbols."""
    (q, k, v, mask, *more), options = call
    limits = (options.softcap, options.window_left + 1, options.window_right + 1)
    if any(limits) or any(x is not None for x in more):
        return composed_attention(call)
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    masks, causal = [] if mask is None else [mask], options.causal
    if mask is not None and mask.dtype == torch.bool and not options.true_hides:
        masks = [~mask]
    if causal and masks:
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device="cpu").triu(1)
        masks, causal = [*masks, future], False
    return _attended((q, k, v), _merged(masks, q.dtype), causal, options.scale, options.dropout_p)


def _hides(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask == -math.inf


def _four_axes(mask: torch.Tensor, heads: int) -> torch.Tensor:
    if mask.dim() == 4:
        return mask
    return mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (-1, heads))


def _merged(masks: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor | None:
    """Return masks whose true hides, or that are added, as one of PyTorch's function."""
    if not masks:
        return None
    hidden = _hides(masks[0])
    for mask in masks[1:]:
        hidden = hidden | _hides(mask)
    floats = [x for x in masks if x.dtype != torch.bool]
    if not floats:
        return ~hidden
    added = sum((x.masked_fill(_hides(x), 0.0) for x in floats), torch.zeros((), dtype=dtype))
    return added.masked_fill(hidden, -math.inf)


def _open(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Let queries that see nothing see everything; return which they are."""
    if seen.dtype == torch.bool:
        nothing = ~seen.any(-1, keepdim=True)
        return seen | nothing, nothing
    nothing = (seen == -math.inf).all(-1, keepdim=True)
    return seen.masked_fill(nothing, 0.0), nothing


def _attended(
    inputs: tuple[torch.Tensor, ...],
    seen: torch.Tensor | None,
    causal: bool,
    scale: float,
    probability: float,
) -> torch.Tensor:
    q, k, v = inputs
    nothing = None
    if seen is not None:
        seen, nothing = _open(seen)
    out: torch.Tensor = _theirs(q, k, v, seen, probability, causal, scale=scale)
    return out if nothing is None else out.masked_fill(nothing, 0.0)


def _with_weights(
    inputs: tuple[torch.Tensor, ...], seen: torch.Tensor | None, probability: float
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = inputs
    scores = q * (1 / math.sqrt(q.shape[3])) @ k.transpose(2, 3)
    if seen is None:
        p = scores.softmax(-1)
    else:
        opened, nothing = _open(seen)
        hidden = opened.logical_not() if opened.dtype == torch.bool else None
        scores = scores + opened if hidden is None else scores.masked_fill(hidden, -math.inf)
        p = scores.softmax(-1).masked_fill(nothing, 0.0)
    p = functional.dropout(p, probability)
    return p @ v, p
