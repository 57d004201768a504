"""The layer on the engine, as an autograd function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from multihead import _native
from multihead.torch.composed import composed
from multihead.torch.options import Options


def _array(x: torch.Tensor | None) -> Any:
    return None if x is None else x.detach().numpy()


def _batch_first(x: torch.Tensor | None, options: Options) -> Any:
    """View (N, tokens, features)."""
    if x is None:
        return None
    return _array(x.transpose(0, 1) if options.tokens_first else x)


def _engine_params(tensors: Sequence[torch.Tensor | None]) -> Any:
    """Parameters, or arrays for their gradients, as the engine takes them."""
    in_weight, q, k, v, in_bias, bias_k, bias_v, out_weight, out_bias = map(_array, tensors)
    weights = (q, k, v) if in_weight is None else _thirds(in_weight)
    biases = (None, None, None) if in_bias is None else _thirds(in_bias)
    extra = (None if b is None else b.reshape(-1) for b in (bias_k, bias_v))
    return (*weights, *biases, *extra, out_weight, out_bias)


def _thirds(x: Any) -> tuple[Any, Any, Any]:
    n = x.shape[0] // 3
    return x[:n], x[n : 2 * n], x[2 * n :]


def _mask_view(mask: torch.Tensor | None, n: int, heads: int, own: bool = False) -> Any:
    """View a mask (L, S) or (N * H, L, S) as (N, H, L, S); its `own` shape is (1, 1, L, S)."""
    if mask is None:
        return None
    if mask.dim() == 2:
        shape = (1, 1) if own else (n, heads)
        return _array(mask.expand(*shape, *mask.shape))
    return _array(mask.view(n, heads, *mask.shape[1:]))


def run(
    options: Options, tensors: Sequence[torch.Tensor | None], keep: bool
) -> tuple[torch.Tensor, torch.Tensor | None, _native.Cache | None]:
    """Run the engine forward; the tensors are those of `composed`.

    Returns
    -------
    out : Tensor
    weights : Tensor or None
    cache : Cache or None
        What backward needs, if it is to be kept.
    """
    query, key, value, padding, mask, *params = tensors
    assert query is not None
    assert key is not None
    out = torch.empty(query.shape, dtype=query.dtype)
    tokens = 0 if options.tokens_first else 1
    n, length, source = query.shape[1 - tokens], query.shape[tokens], key.shape[tokens]
    weights = None
    if options.average is not None:
        heads = 1 if options.average else options.num_heads
        columns = source + (params[5] is not None) + options.zero_row
        weights = torch.empty((n, heads, length, columns), dtype=query.dtype)
    # one array for one tensor: the engine sees by address that inputs are the same
    q = _batch_first(query, options)
    k = q if key is query else _batch_first(key, options)
    v = q if value is query else k if value is key else _batch_first(value, options)
    cache = _native.layer_forward(
        options.num_heads,
        options.zero_row,
        _engine_params(params),
        (q, k, v),
        None,
        (_array(padding), _mask_view(mask, n, options.num_heads)),
        options.causal,
        options.dropout,
        _batch_first(out, options),
        _array(weights),
        bool(options.average),
        keep,
    )
    return out, weights[:, 0] if options.average and weights is not None else weights, cache


class Attention(torch.autograd.Function):
    """The layer: gradients of inputs, float masks and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        *tensors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the engine; the parameters are those of `composed`."""
        out, weights, ctx.native = run(options, tensors, True)
        ctx.options = options
        ctx.save_for_backward(*tensors)
        return out, weights

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor, d_weights: torch.Tensor | None) -> Any:
        """Return the gradients of all that `forward` took, in its order."""
        options: Options = ctx.options
        query, key, value, padding, mask, *params = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return None, *_differentiable(ctx, d_out, d_weights)
        tensors = (query, key, value, padding, mask, *params)
        grads = [
            None if not needed else (torch.zeros_like if i > 4 else torch.empty_like)(x)
            for i, (x, needed) in enumerate(zip(tensors, ctx.needs_input_grad[1:], strict=True))
        ]
        n = query.shape[1 if options.tokens_first else 0]
        if d_weights is not None and options.average:
            d_weights = d_weights[:, None]
        _native.layer_backward(
            options.num_heads,
            options.zero_row,
            _engine_params(params),
            tuple(_batch_first(x, options) for x in (query, key, value)),
            None,
            (_array(padding), _mask_view(mask, n, options.num_heads)),
            options.causal,
            options.dropout,
            ctx.native,
            _batch_first(d_out, options),
            _array(d_weights),
            bool(options.average),
            tuple(_batch_first(x, options) for x in grads[:3]),
            _engine_params(grads[5:]),
            (_array(grads[3]), _mask_view(grads[4], n, options.num_heads, own=True)),
        )
        return None, *grads


def _differentiable(ctx: Any, d_out: torch.Tensor, d_weights: torch.Tensor | None) -> list[Any]:
    """Return the gradients with a graph of their own."""
    tensors = ctx.saved_tensors
    out, weights = composed(ctx.options, *tensors)
    results, gradients = [out], [d_out]
    if weights is not None and d_weights is not None:
        results.append(weights)
        gradients.append(d_weights)
    needed = [i for i, wanted in enumerate(ctx.needs_input_grad[1:]) if wanted]
    found = torch.autograd.grad(
        results, [tensors[i] for i in needed], gradients, create_graph=True, allow_unused=True
    )
    grads: list[Any] = [None] * len(tensors)
    for i, grad in zip(needed, found, strict=True):
        grads[i] = grad
    return grads
