"""Scaled dot-product attention with its weights, which take memory: only where asked for."""

from __future__ import annotations

import torch

from multihead import _native
from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.score_rules import Asked
from multihead.torch.calls import AttentionCall
from multihead.torch.composed import composed_weights
from multihead.torch.dispatch import Ways, compute
from multihead.torch.functional import _four_axes, _lead, _mask_axes
from multihead.torch.rules import with_rules
from multihead.torch.sdpa import new_out
from multihead.torch.tensors import NAMES, NARROW, dtype_of, engine_reads


def attention_and_weights(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    options: AttentionOptions,
    rules: Asked,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend as `scaled_dot_product_attention` does, and return the weights that it applied.

    Both have gradients; where these are needed every score is in memory.

    Parameters
    ----------
    inputs : tuple of Tensor
        Query (N, H, L, D), key (N, Hk, S, D) and value (N, Hk, S, Dv); Hk divides H.
    mask : Tensor, optional
        Broadcastable to (N, H, L, S); true = attend.
    options : AttentionOptions
        Without a dtype, and a seed.
    rules : Asked

    Returns
    -------
    out, weights : Tensor
        (N, H, L, Dv) and (N, H, L, S), these after dropout and without a sink.

    Raises
    ------
    ValueError
        If the tensors do not fit, or are not the engine's.
    """
    query, key, value = inputs
    lead = _lead(inputs, mask, options.dropout_p, True)
    if lead is None or len(lead) != 2:
        given = ", ".join(f"{str(x.dtype)[6:]} {tuple(x.shape)}" for x in inputs)
        raise ValueError(
            "output_attentions: expected query (N, H, L, D), key (N, Hk, S, D) and value "
            f"(N, Hk, S, Dv), of float32, float64, float16 or bfloat16, got {given}"
        )
    dtype = query.dtype
    if torch.is_autocast_enabled("cpu") and dtype in NARROW:
        dtype = torch.get_autocast_dtype("cpu")
    of_keys = (lead[0], key.shape[1])
    q, k, v = _four_axes(query, lead), _four_axes(key, of_keys), _four_axes(value, of_keys)
    mask = None if mask is None else _mask_axes(mask, lead)
    call = AttentionCall(AttentionTensors(q, k, v, mask), options._replace(dtype=NAMES[dtype]))
    found: tuple[torch.Tensor, torch.Tensor] = compute(with_rules(call, rules), _WAYS)
    return found


def _engine(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = call.tensors.query, call.tensors.key
    out = new_out(call)
    weights = q.new_empty((*q.shape[:3], k.shape[2]), dtype=dtype_of(call))
    if out.numel() == 0 or weights.numel() == 0:
        return out.zero_(), weights
    written, kept = engine_reads((out, weights))
    _native.attention_forward(call.options, engine_reads(call.tensors), written, None, kept)
    return out, weights


def _traced(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what PyTorch follows, with dropout of PyTorch's own."""
    found: tuple[torch.Tensor, torch.Tensor]
    found = composed_weights(call._replace(options=call.options._replace(seed=None)))
    return found


_WAYS = Ways(
    engine=_engine,
    function=composed_weights,
    operation=_traced,
    composed=composed_weights,
    exported=composed_weights,
)
