"""The layer as operations that PyTorch's compiler, exporter and dispatch modes follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from multihead.torch import engine
from multihead.torch.composed import composed, derivatives
from multihead.torch.function import needed_gradients, traced_gradients, weights_differ
from multihead.torch.options import TENSORS, Offsets, Options, three
from multihead.torch.tensors import kept_masks, settled

_LANES = 16  # the engine's rows of tokens end at multiples of this

_ARGUMENTS = ", ".join(
    [
        *(f"Tensor{'' if name == 'query' else '?'} {name}" for name in TENSORS),
        "Tensor? seed, Tensor? query_offsets, Tensor? key_offsets",
        "int num_heads, bool zero_row, bool causal, bool? average, bool tokens_first",
        "float probability",
    ]
)
_OWN = len(TENSORS)  # where the arguments after the tensors begin
_FORWARD = "multihead::attention"
_BACKWARD = "multihead::attention_backward"

# out, shaped like query; weights (N, H or 1, L, S'), or (0,) for none; what backward needs, 1-D
torch.library.define(_FORWARD, f"({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)")
# the gradients that are needed, in the order of the tensors
torch.library.define(
    _BACKWARD,
    f"(Tensor d_out, Tensor? d_weights, Tensor cache, {_ARGUMENTS}, bool[] needed) -> Tensor[]",
)


def attention(
    options: Options,
    tensors: Sequence[torch.Tensor | None],
    offsets: Offsets | None,
    seed: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Call the operation, as `composed` is called; dropout's seed is a tensor."""
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    out, weights, _ = torch.ops.multihead.attention(
        *tensors,
        seed,
        *(offsets or (None, None)),
        *options[:6],
        keep,
    )
    return out, None if options.average is None else weights


def _options(arguments: Sequence[Any]) -> tuple[Options, Offsets | None, Any]:
    seed, q, k, heads, zero_row, causal, average, tokens_first, probability = arguments
    offsets = None if q is None else Offsets(q, k)
    options = Options(heads, zero_row, causal, average, tokens_first, probability, None)
    return options, offsets, seed


def _seeded(options: Options, seed: torch.Tensor | None) -> Options:
    return options if seed is None else options._replace(seed=int(seed))


def _cache_elements(options: Options, tensors: Sequence[Any], offsets: Offsets | None) -> Any:
    """Return how many elements backward needs at most: q and out, k and v, two of each row."""
    (query, key, _), out_weight = three(tensors), tensors[12]
    extra = (tensors[10] is not None) + options.zero_row

    def lanes(x: Any, steps: Any, more: int) -> Any:
        if steps is not None:
            return x.shape[0] + (steps.shape[0] - 1) * (_LANES - 1 + more)
        n, tokens = (1, 0) if options.tokens_first else (0, 1)
        return x.shape[n] * ((x.shape[tokens] + more + _LANES - 1) // _LANES * _LANES)

    q_steps, k_steps = offsets or (None, None)
    width = 2 * out_weight.shape[1]
    rows = lanes(query, q_steps, 0) * (width + 2 * options.num_heads)
    return rows + lanes(key, k_steps, extra) * width


def _forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors, keep = arguments[:_OWN], arguments[-1]
    options, offsets, seed = _options(arguments[_OWN:-1])
    query = tensors[0]
    cache = query.new_empty(_cache_elements(options, tensors, offsets) if keep else 0)
    out, weights, _ = engine.forward(
        _seeded(options, seed), tensors, offsets, cache if keep else False
    )
    return out, query.new_empty(0) if weights is None else weights, cache


def _fake_forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors, keep = arguments[:_OWN], arguments[-1]
    options, offsets, _ = _options(arguments[_OWN:-1])
    query = tensors[0]
    cache = query.new_empty(_cache_elements(options, tensors, offsets) if keep else 0)
    if options.average is not None and offsets is not None:
        weights = query.new_empty(torch.library.get_ctx().new_dynamic_size())
    elif options.average is not None:
        weights = engine.new_weights(options, tensors, None)
    else:
        weights = query.new_empty(0)
    return query.new_empty(query.shape), weights, cache


def _backward(d_out: Any, d_weights: Any, cache: Any, *arguments: Any) -> list[torch.Tensor]:
    tensors, needed = arguments[:_OWN], arguments[-1]
    options, offsets, seed = _options(arguments[_OWN:-1])
    options = _seeded(options, seed)
    d_out, d_weights = settled(d_out), settled(d_weights)
    grads = engine.backward(options, tensors, offsets, cache, d_out, d_weights, needed)
    return [grad for grad in grads if grad is not None]


def _fake_backward(d_out: Any, d_weights: Any, cache: Any, *arguments: Any) -> list[torch.Tensor]:
    needed = arguments[-1]
    return [torch.empty_like(arguments[i]) for i in range(_OWN) if needed[i]]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    tensors = inputs[: _OWN + 3]
    if not torch.compiler.is_compiling():
        tensors = tuple(kept_masks(tensors))
    ctx.save_for_backward(*tensors, output[2])
    ctx.rest = inputs[_OWN + 3 : -1]
    ctx.set_materialize_grads(False)
    fixed = output[2:] if weights_differ(ctx.needs_input_grad) else output[1:]
    ctx.mark_non_differentiable(*fixed)


def _gradients(ctx: Any, d_out: Any, d_weights: Any, _: Any) -> tuple[Any, ...]:
    *tensors, seed, q_offsets, k_offsets, cache = ctx.saved_tensors
    options, offsets, _ = _options((seed, q_offsets, k_offsets, *ctx.rest))
    if options.average is None:
        d_weights = None
    needed = [x is not None and n for x, n in zip(tensors, ctx.needs_input_grad, strict=False)]
    needed = needed_gradients(needed, d_out)
    nothing = [None] * (3 + len(ctx.rest) + 1)
    if torch.is_grad_enabled():  # to be differentiated once more
        options = _seeded(options, seed)
        grads = derivatives(
            lambda copies: composed(options, copies, offsets), tensors, (d_out, d_weights), needed
        )
        return *grads, *nothing
    grads = traced_gradients(options, tensors, offsets, seed, cache, d_out, d_weights, needed)
    return *grads, *nothing


def _flops(arguments: Sequence[Any]) -> tuple[int, int]:
    """Count those of one forward, and of the scores: a multiplication and an addition are two."""
    options, offsets, _ = _options(arguments[_OWN:-1])
    (query, key, value), (features, inner) = three(arguments), arguments[12].shape
    tokens, sources = query.shape[:-1].numel(), key.shape[:-1].numel()
    if offsets is None:
        pairs = tokens * key.shape[0 if options.tokens_first else 1]
    else:
        pairs = int((offsets.query.diff() * offsets.key.diff()).sum())
    projections = tokens * (query.shape[-1] + features)
    projections += sources * (key.shape[-1] + value.shape[-1])
    scores = 2 * inner * pairs
    return 2 * inner * projections + 2 * scores, scores


def _forward_flops(*arguments: Any, out_val: Any = None) -> int:
    return _flops(arguments)[0]


def _backward_flops(
    d_out: Any, d_weights: Any, cache: Any, *arguments: Any, out_val: Any = None
) -> int:
    # two products for each of the forward's, and the scores again
    forward, scores = _flops(arguments)
    return 2 * forward + scores


torch.library.impl(_FORWARD, "CPU", _forward)
torch.library.register_fake(_FORWARD, _fake_forward)
torch.library.impl(_BACKWARD, "CPU", _backward)
torch.library.register_fake(_BACKWARD, _fake_backward)
torch.library.register_autograd(_FORWARD, _gradients, setup_context=_set_up)
register_flop_formula(torch.ops.multihead.attention, get_raw=True)(_forward_flops)
register_flop_formula(torch.ops.multihead.attention_backward, get_raw=True)(_backward_flops)
