"""`torch.nn.functional.multi_head_attention_forward` on the engine."""

from __future__ import annotations

from typing import NamedTuple

import torch

from multihead.arguments import LayerOptions, LayerTensors
from multihead.torch.calls import (
    LayerCall,
    batch_of_one,
    cloned_inputs,
    input_tensors,
    result_weights,
)
from multihead.torch.dispatch import compute, needs_grad
from multihead.torch.fits import compute_dtype
from multihead.torch.module import WAYS
from multihead.torch.tensors import NAMES


class _Layer(NamedTuple):
    """What a module would say of itself."""

    embed_dim: int
    num_heads: int
    kdim: int
    vdim: int
    dropout: float
    packed: bool
    batch_first: bool = False

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return self.packed

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads


def multi_head_attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: torch.Tensor | None,
    in_proj_bias: torch.Tensor | None,
    bias_k: torch.Tensor | None,
    bias_v: torch.Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: torch.Tensor,
    out_proj_bias: torch.Tensor | None,
    training: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: torch.Tensor | None = None,
    k_proj_weight: torch.Tensor | None = None,
    v_proj_weight: torch.Tensor | None = None,
    static_k: torch.Tensor | None = None,
    static_v: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Attend; parameters and results are PyTorch's.

    Returns
    -------
    out : Tensor
        Shaped like `query`: (L, N, E) or (L, E).
    weights : Tensor or None
        (N, L, S'), or (N, H, L, S') for each head, after dropout.

    None in place of both where the engine does not compute this call, or PyTorch refuses it.
    """
    if static_k is not None or static_v is not None:
        return None
    if attn_mask is not None and attn_mask.dim() not in (2, 3):
        return None
    if is_causal:  # a hint that the mask is causal, which PyTorch takes where nothing else hides
        if attn_mask is None or bias_k is not None or add_zero_attn:
            return None
        is_causal = key_padding_mask is None and not need_weights
        attn_mask = None if is_causal else attn_mask
    separate = use_separate_proj_weight
    own = (q_proj_weight, k_proj_weight, v_proj_weight)
    if any(x is None for x in (own if separate else (in_proj_weight,))):
        return None
    layer = _Layer(
        embed_dim=embed_dim_to_check,
        num_heads=num_heads,
        kdim=embed_dim_to_check if k_proj_weight is None else k_proj_weight.shape[-1],
        vdim=embed_dim_to_check if v_proj_weight is None else v_proj_weight.shape[-1],
        dropout=dropout_p,
        packed=not separate,
    )
    inputs = query, key, value
    tensors = LayerTensors(
        *(
            *input_tensors(*inputs),
            key_padding_mask,
            attn_mask,
            None if separate else in_proj_weight,
            *(own if separate else (None, None, None)),
            in_proj_bias,
            bias_k,
            bias_v,
            out_proj_weight,
            out_proj_bias,
        )
    )
    dtype = None if query.is_nested else compute_dtype(layer, inputs, tensors, need_weights)
    if dtype is None:
        return None
    unbatched = query.dim() == 2
    if needs_grad(tensors) and _lets_inputs_change(tensors):
        tensors = cloned_inputs(tensors)
    if unbatched:
        tensors = batch_of_one(tensors)
    options = LayerOptions(
        dtype=NAMES[dtype],
        num_heads=num_heads,
        key_heads=num_heads,
        head_dim=layer.head_dim,
        zero_row=bool(add_zero_attn),
        causal=is_causal,
        average=bool(average_attn_weights) if need_weights else None,
        tokens_first=not unbatched,
        dropout_p=dropout_p if training else 0.0,
        seed=None,
    )
    out, weights = compute(LayerCall(tensors, options, None), WAYS)
    return out[0] if unbatched else out, result_weights(weights, options.average, unbatched)


def _lets_inputs_change(t: LayerTensors) -> bool:
    """Whether PyTorch lets inputs change in place before backward: it copies, or keeps none."""
    if torch.compiler.is_compiling():  # there are no changes in place in its graphs
        return False
    weights = (t.in_weight, t.q_weight, t.k_weight, t.v_weight)
    if not any(x is not None and x.requires_grad for x in weights):
        return True
    return torch.is_autocast_enabled("cpu") or not t.query.is_contiguous()
