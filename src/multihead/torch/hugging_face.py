"""Attention as Hugging Face's models ask for it, and the masks they give it."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from multihead.torch.functional import scaled_dot_product_attention
from multihead.torch.packed_transformers import (
    attend_packed,
    boundaries,
    made_here,
    note_made,
    separated,
)
from multihead.torch.support import refusal

NAME = "multihead"

# what some models ask of their attention function besides masks, dropout and scale
_LACKING = ("head_mask", "indices", "block_indices")
_OURS = ("softcap", "s_aux", "sinks")  # and not of "sdpa"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' models ask: heads before tokens, and tokens first in the result."""
    _refuse(query, attention_mask, options)
    if query.device.type != "cpu":
        theirs: tuple[torch.Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            position_bias=position_bias,
            **options,
        )
        return theirs
    if options.get("output_attentions"):
        warnings.warn(
            f'attention "{NAME}" returns no weights for output_attentions=True: use "eager"',
            stacklevel=2,
        )
    length = query.shape[2]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    # a mask has its own causality, and one query is the last of its sequence
    causal = bool(length > 1 and attention_mask is None and is_causal)
    mask = attention_mask
    if mask is not None and mask.dim() == 4:
        mask = mask[..., : key.shape[2]]
    ends = boundaries(query, key, attention_mask, bool(is_causal), options)
    if ends is not None and mask is not None:
        sizes = query.shape[0], length, key.shape[2]
        mask = separated(mask, ends, sizes, made_here(attention_mask))
    elif ends is not None:
        if position_bias is not None:
            raise ValueError(f'attention "{NAME}" knows no position_bias of packed sequences')
        rest = _rules(query, key, mask, options)
        given = {"dropout_p": dropout, "scale": scaling}
        given |= {name: rest[name] for name in ("softcap", "sinks") if name in rest}
        window = options.get("sliding_window")
        inputs = query, key, value
        return attend_packed(inputs, ends, bool(is_causal), window, **given), None
    if position_bias is not None:
        mask = _biased(position_bias, mask)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        dropout,
        causal,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
        **_rules(query, key, mask, options),
    )
    return out.transpose(1, 2).contiguous(), None


def _rules(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what a model asks for besides, under our function's names."""
    rules: dict[str, Any] = {}
    if options.get("softcap") is not None:
        rules["softcap"] = options["softcap"]
    for name in ("s_aux", "sinks"):
        if options.get(name) is not None:
            rules["sinks"] = options[name].to(query.dtype)
    window = options.get("sliding_window")
    if mask is None and isinstance(window, int) and 0 < window < key.shape[2]:
        rules |= {"window": (window - 1, None), "query_offset": "end"}  # its own place counts
    return rules


def _refuse(query: torch.Tensor, mask: Any, options: dict[str, Any]) -> None:
    """Raise where the result would not be what the model asks for."""
    for name in _LACKING if query.device.type == "cpu" else (*_LACKING, *_OURS):
        if options.get(name) is not None:
            raise ValueError(
                f'attention "{NAME}" does not support {name}: use attn_implementation="eager"'
            )
    if mask is not None or query.device.type == "cpu":
        return
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        ends = options.get(name)
        if ends is not None and ends.shape[0] - 1 > query.shape[0]:
            raise ValueError(
                f'attention "{NAME}" reads packed sequences that are not in CPU memory from the '
                f"attention mask, and there is none for the {ends.shape[0] - 1} of {name}"
            )


def _biased(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, -math.inf)
    return bias + mask


def make_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Make the mask of "sdpa": True = attend, or None where causality says it all."""
    config = kwargs.get("config")
    if config is not None:
        why = _refusal(type(config))
        if why is not None:
            raise ValueError(why)
        # Layers that share keys may be given a prompt's last queries only: the mask shows which.
        if getattr(config, "num_kv_shared_layers", None):
            kwargs["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)
    if mask is not None:
        note_made(mask, kwargs)
    return mask


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _refusal(config: Any) -> str | None:
    return refusal(config, NAME)


def check_when_set() -> None:
    """Have transformers ask us where our name is set, or a model is made with it."""
    inner = getattr(PreTrainedModel, "get_correct_attn_implementation", None)
    if inner is None or hasattr(inner, "__wrapped__"):
        return

    @functools.wraps(inner)
    def checked(self: Any, requested_attention: Any, *args: Any, **options: Any) -> Any:
        config: Any = type(self.config)
        why = refusal(config, NAME) if requested_attention == NAME else None
        if why is not None:
            raise ValueError(why)
        return inner(self, requested_attention, *args, **options)

    PreTrainedModel.get_correct_attn_implementation = checked
