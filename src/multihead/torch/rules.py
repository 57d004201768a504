"""What stands between scores and the softmax, in PyTorch's own operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from multihead.checks import dims, wrong, wrong_type
from multihead.score_rules import Asked, cap_of, sides_of
from multihead.torch.calls import AttentionCall
from multihead.torch.packed import lengths as lengths_of

NOT_OURS = (
    "window, query_offset, key_lengths, softcap, alibi_slopes, sinks, return_lse: expected none of "
    "them where the tensors are PyTorch's function's (CPU tensors that fit are ours)"
)
_LN2 = math.log(2.0)


def with_rules(call: AttentionCall, rules: Asked) -> AttentionCall:
    """Return a call that keeps rules, or raise."""
    tensors, options = call
    steps, heads = tensors.query_offsets, tensors.query.shape[1]
    n = tensors.query.shape[0] if steps is None else steps.shape[0] - 1
    lengths, slopes, sinks = rules.key_lengths, rules.alibi_slopes, rules.sinks
    if lengths is not None:
        lengths = _integers("key_lengths", lengths, n)
    if slopes is not None:
        if tuple(slopes.shape) not in ((heads,), (n, heads)):
            expected = f"{dims(heads)} or {dims(n, heads)}"
            raise wrong("alibi_slopes", expected, tuple(slopes.shape))
        if slopes.requires_grad and torch.is_grad_enabled():
            raise wrong("alibi_slopes", "slopes without a gradient (alibi_slopes.detach())", "one")
        slopes = slopes.to(torch.float64 if options.dtype == "float64" else torch.float32)
    if sinks is not None and tuple(sinks.shape) != (heads,):
        raise wrong("sinks", dims(heads), tuple(sinks.shape))
    positions, offset = None, rules.query_offset
    if isinstance(offset, str):
        if offset != "end":
            raise wrong("query_offset", 'integers or "end"', repr(offset))
        positions = _ends(call, lengths, n)
    elif isinstance(offset, int) and not isinstance(offset, bool):
        if offset != 0:
            positions = torch.full((n,), offset, device="cpu")
    elif offset is not None:
        positions = _integers("query_offset", offset, n)
    left, right = sides_of(rules.window)
    return AttentionCall(
        tensors._replace(
            alibi_slopes=slopes, sinks=sinks, query_positions=positions, key_lengths=lengths
        ),
        options._replace(softcap=cap_of(rules.softcap), window_left=left, window_right=right),
    )


def _ends(call: AttentionCall, lengths: torch.Tensor | None, n: int) -> torch.Tensor:
    """Return where a sequence's first query stands if its last stands on the last key: (N,)."""
    tensors, _ = call
    if tensors.query_offsets is not None:
        queries, keys = lengths_of(tensors)
        return (keys if lengths is None else lengths) - queries
    queries, keys = tensors.query.shape[2], tensors.key.shape[2]
    if lengths is None:
        return torch.full((n,), keys - queries, device="cpu")
    return lengths - queries


def _integers(name: str, x: Sequence[int] | torch.Tensor, n: int) -> torch.Tensor:
    tensor = torch.as_tensor(x, device="cpu")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise wrong_type(name, "integers", str(tensor.dtype)[6:])
    if tuple(tensor.shape) != (n,):
        raise wrong(name, dims(n), tuple(tensor.shape))
    return tensor.to(torch.int64).contiguous()


def _steps(call: AttentionCall) -> torch.Tensor:
    """Return how far each key stands from each query: (1 or N, 1, L, S)."""
    tensors, _ = call
    queries, keys = tensors.query.shape[2], tensors.key.shape[2]
    query = torch.arange(queries, device="cpu")[:, None]
    if tensors.query_positions is not None:
        query = query + tensors.query_positions[:, None, None, None]
    steps: torch.Tensor = torch.arange(keys, device="cpu") - query
    return steps if steps.dim() == 4 else steps[None, None]


def hidden_keys(call: AttentionCall) -> torch.Tensor | None:
    """Return what causality, a window and lengths hide, (1 or N, 1, L, S); None: nothing."""
    tensors, options = call
    after = 0 if options.causal else options.window_right
    hidden: torch.Tensor | None = None
    if after >= 0 or options.window_left >= 0:
        steps = _steps(call)
        hidden = torch.zeros_like(steps, dtype=torch.bool)
        if after >= 0:
            hidden = hidden | (steps > after)
        if options.window_left >= 0:
            hidden = hidden | (steps < -options.window_left)
    if tensors.key_lengths is not None:
        keys = torch.arange(tensors.key.shape[2], device="cpu")
        beyond = keys >= tensors.key_lengths[:, None, None, None]
        hidden = beyond if hidden is None else hidden | beyond
    return hidden


def changed_scores(scores: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    """Cap scaled scores, and take from them what ALiBi says."""
    tensors, options = call
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if tensors.alibi_slopes is not None:
        slopes = tensors.alibi_slopes.to(scores.dtype)[..., None, None]
        less = slopes * _steps(call).abs().to(scores.dtype)
        scores = scores - pad(less, (0, scores.shape[-1] - less.shape[-1]))  # others have no place
    return scores


def natural(stats: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of the rows' sums from the engine's statistics of the rows."""
    top, inverse = stats.unbind(0)
    return torch.where(inverse == 0, -math.inf, top * _LN2 - inverse.log())


def of_natural(d_stats: torch.Tensor | None) -> torch.Tensor | None:
    """Return the gradient of `natural`'s result from that of what it read."""
    return None if d_stats is None else d_stats[0] / _LN2
