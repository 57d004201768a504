"""Attention as Hugging Face's models ask for it, and the masks they give it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from multihead.arguments import AttentionOptions
from multihead.checks import wrong
from multihead.score_rules import Asked
from multihead.torch.dispatch import traced, transformed
from multihead.torch.functional import scaled_dot_product_attention
from multihead.torch.packed_transformers import (
    attend_packed,
    boundaries,
    made_here,
    note_made,
    separated,
)
from multihead.torch.sharded_transformers import (
    ATTRIBUTE,
    attend_over_ranks,
    current,
    sharded_mask,
)
from multihead.torch.support import masks_decide, refusal
from multihead.torch.weights import attention_and_weights

try:
    from transformers.utils.output_capturing import _active_collector
except ImportError:  # models pass on what they are asked for
    _active_collector = None

NAME = "multihead"

# what some models ask of their attention function besides masks, dropout and scale
_LACKING = ("indices", "block_indices")
_FEW = 64  # queries
_OURS = ("softcap", "s_aux", "sinks", "head_mask")  # and not of "sdpa"


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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as transformers' models ask: heads before tokens, and tokens first in the result."""
    shared = getattr(module, ATTRIBUTE, None)
    if shared is not None:
        if _weights_asked(options):
            raise wrong("output_attentions", "False, as the model is shared by ranks", True)
        said = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        said = {**options, **said, "position_bias": position_bias}
        return attend_over_ranks(module, shared, (query, key, value), attention_mask, said), None
    _refuse(query, attention_mask, options)
    if not query.is_cpu:
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
    length = query.shape[2]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    # a mask has its own causality, and one query is the last of its sequence
    causal = bool(length > 1 and attention_mask is None and is_causal)
    causal = causal and not masks_decide(type(getattr(module, "config", None)))
    mask = attention_mask
    if mask is not None and mask.dim() == 4:
        mask = mask[..., : key.shape[2]]
    factor = None if options.get("head_mask") is None else _of_heads(options["head_mask"], query)
    ends = boundaries(query, key, attention_mask, bool(is_causal), options)
    if ends is not None and mask is not None:
        sizes = query.shape[0], length, key.shape[2]
        mask = separated(mask, ends, sizes, made_here(attention_mask))
    elif ends is not None:
        _refuse_packed(position_bias, options)
        rest = _rules(query, key, mask, options)
        given = {"dropout_p": dropout, "scale": scaling}
        given |= {name: rest[name] for name in ("softcap", "sinks") if name in rest}
        window = options.get("sliding_window")
        inputs = query, key, value
        packed = attend_packed(inputs, ends, bool(is_causal), window, **given)
        return packed if factor is None else packed * factor.transpose(1, 2), None
    seen, keys = length if causal else _seen(mask, query, key), key.shape[2]
    if seen < keys:  # of a static cache
        key, value = key[:, :, :seen], value[:, :, :seen]
        position_bias = None if position_bias is None else position_bias[..., :seen]
        mask = None if mask is None else mask[..., :seen]
    if position_bias is not None:
        mask = _biased(position_bias, mask)
    rules, weights = _rules(query, key, mask, options), None
    if _weights_asked(options):
        asked = AttentionOptions("", causal, _scale(query, scaling), float(dropout), None)
        out, weights = attention_and_weights((query, key, value), mask, asked, Asked(**rules))
        if seen < keys:
            weights = torch.nn.functional.pad(weights, (0, keys - seen))
    else:
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            dropout,
            causal,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
            **rules,
        )
    if factor is not None:
        out, weights = out * factor, None if weights is None else weights * factor
    return out.transpose(1, 2).contiguous(), weights


def _refuse_packed(position_bias: torch.Tensor | None, options: dict[str, Any]) -> None:
    for name in ("position_bias", "output_attentions"):
        if position_bias is not None if name == "position_bias" else _weights_asked(options):
            raise ValueError(
                f'attention "{NAME}" knows no {name} of packed sequences that no mask '
                'shows: use attn_implementation="eager"'
            )


def _seen(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> int:
    """Count the keys up to the last that a mask shows, where reading all would cost more than that.

    Many queries cost more than the keys that they do not see; of one, the engine reads no others.
    """
    keys: int = key.shape[2]
    if mask is None or mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[3] < keys:
        return keys
    if not 1 < query.shape[2] <= _FEW or traced() or transformed() or mask[..., keys - 1].any():
        return keys
    shown = mask[..., :keys].flatten(0, 2).any(0).nonzero()
    return int(shown[-1]) + 1 if len(shown) else keys


def _scale(query: torch.Tensor, scaling: float | None) -> float:
    return 1 / math.sqrt(max(query.shape[3], 1)) if scaling is None else float(scaling)


def _weights_asked(options: dict[str, Any]) -> bool:
    """Whether the caller wants weights: models say so, or hooks of transformers wait for them."""
    if options.get("output_attentions"):
        return True
    waiting = None if _active_collector is None else _active_collector.get()
    return waiting is not None and any("attentions" in name for name in waiting)


def _of_heads(head_mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """View what each head's weights are multiplied by as a factor of its results."""
    n, heads, length, _ = query.shape
    factor = head_mask
    if factor.dim() in (1, 2):
        factor = factor[..., None, None]
    factor = factor[(None,) * (4 - factor.dim())]
    fits = zip(factor.shape, (n, heads, length, 1), strict=False)
    if factor.dim() != 4 or any(a not in (1, b) for a, b in fits):
        expected = f"({heads},), ({n}, {heads}) or up to ({n}, {heads}, {length}, 1)"
        raise wrong(
            "head_mask", f'{expected} (or attn_implementation="eager")', tuple(head_mask.shape)
        )
    return factor.to(query.dtype)


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
    on_cpu = query.is_cpu
    for name in _LACKING if on_cpu else (*_LACKING, *_OURS):
        if options.get(name) is not None:
            raise ValueError(
                f'attention "{NAME}" does not support {name}: use attn_implementation="eager"'
            )
    if mask is not None or on_cpu:
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
    scope = current()
    if scope is not None:
        return sharded_mask(scope, kwargs)
    config = kwargs.get("config")
    if config is not None:
        why = _refusal(type(config))
        if why is not None:
            raise ValueError(why)
        # Layers that share keys may be given a prompt's last queries only: the mask shows which.
        if getattr(config, "num_kv_shared_layers", None):
            kwargs["allow_is_causal_skip"] = False
        if masks_decide(type(config)):
            kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: torch.Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)
    if mask is not None:
        note_made(mask, kwargs)
    return mask


def _refused(config: Any) -> str | None:
    return refusal(config, NAME)


# a graph holds the answer for a model's class, which does not change
_refusal: Callable[[Any], str | None] = torch.compiler.assume_constant_result(_refused)


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
