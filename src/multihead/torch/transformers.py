"""Hugging Face's models: an attention function for transformers' attention interface."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from multihead.torch.functional import scaled_dot_product_attention

_NAME = "multihead"
# what some models ask of their attention function besides masks, dropout and scale
_LACKING = ("softcap", "s_aux", "sinks", "head_mask", "indices", "block_indices")


def register_transformers() -> None:
    """Register the attention function ``"multihead"`` with Hugging Face transformers.

    Afterwards ``model.set_attn_implementation("multihead")``, or
    ``attn_implementation="multihead"`` where a model is made, lets any model that supports
    ``"sdpa"`` through the attention interface compute attention on the engine, in training and
    generation. Masks and results are those of ``"sdpa"``. Calling it again changes nothing.

    Raises
    ------
    ImportError
        If transformers is not installed, or lacks the attention interface.

    Notes
    -----
    Tensors that are not in CPU memory go to transformers' own ``"sdpa"``. As with that one,
    ``output_attentions=True`` warns and gives no weights: they need ``"eager"``.

    What would change the result and is not computed here raises `ValueError` during the call:
    capped scores (``softcap``), attention sinks (``s_aux``, ``sinks``), ``head_mask``, sparse
    attention (``indices``, ``block_indices``), a sliding window or packed sequences that no mask
    shows, and masks for models that do not support ``"sdpa"``.

    Examples
    --------
    >>> import torch
    >>> import transformers
    >>> from multihead.torch import register_transformers
    >>> register_transformers()
    >>> config = transformers.BertConfig(
    ...     vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> model = transformers.AutoModel.from_config(config, attn_implementation="multihead")
    >>> tuple(model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape)
    (1, 3, 8)
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            "register_transformers() needs Hugging Face transformers: pip install transformers"
        ) from error
    try:
        from transformers.masking_utils import AttentionMaskInterface
        from transformers.modeling_utils import AttentionInterface
    except ImportError as error:
        version = getattr(transformers, "__version__", "of this version")
        raise ImportError(
            "register_transformers() needs AttentionInterface and AttentionMaskInterface, which "
            f"transformers {version} lacks: pip install --upgrade transformers"
        ) from error
    AttentionMaskInterface.register(_NAME, _make_mask)
    AttentionInterface.register(_NAME, _attend)


def _attend(
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
    _refuse(query, key, attention_mask, options)
    if query.device.type != "cpu":
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
            f'attention "{_NAME}" returns no weights for output_attentions=True: use "eager"',
            stacklevel=2,
        )
    n, heads, length = query.shape[:3]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    # a mask has its own causality, and one query is the last of its sequence
    causal = bool(length > 1 and attention_mask is None and is_causal)
    mask = attention_mask
    if mask is not None and mask.dim() == 4:
        mask = mask[..., : key.shape[2]]
    if position_bias is not None:
        mask = _biased(position_bias, mask)
    kv_heads = key.shape[1]
    grouped = length == 1 and 1 <= kv_heads < heads and heads % kv_heads == 0
    if grouped:  # the heads of a group become queries of one head
        groups = kv_heads, heads // kv_heads
        query = query.reshape(n, *groups, query.shape[3])
        if mask is not None and mask.dim() > 2 and mask.shape[-3] == heads:
            mask = mask.reshape(*mask.shape[:-3], *groups, mask.shape[-1])
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        dropout,
        causal,
        scale=scaling,
        enable_gqa=kv_heads != query.shape[1],
    )
    if grouped:
        out = out.reshape(out.shape[0], heads, 1, out.shape[3])
    return out.transpose(1, 2).contiguous(), None


def _refuse(query: torch.Tensor, key: torch.Tensor, mask: Any, options: dict[str, Any]) -> None:
    """Raise where the result would not be what the model asks for."""
    for name in _LACKING:
        if options.get(name) is not None:
            raise ValueError(
                f'attention "{_NAME}" does not support {name}: use attn_implementation="eager"'
            )
    if mask is not None:
        return
    window = options.get("sliding_window")
    if isinstance(window, int) and 0 < window < key.shape[2]:
        raise ValueError(
            f'attention "{_NAME}" reads a sliding window from the attention mask, and there is '
            f"none for sliding_window={window} and {key.shape[2]} keys"
        )
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        ends = options.get(name)
        if ends is not None and ends.shape[0] - 1 > query.shape[0]:
            raise ValueError(
                f'attention "{_NAME}" reads packed sequences from the attention mask, and there is '
                f"none for the {ends.shape[0] - 1} sequences of {name}"
            )


def _biased(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, -math.inf)
    return bias + mask


def _make_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Make the mask of "sdpa": True = attend, or None where causality says it all."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    config = kwargs.get("config")
    if config is not None:
        if not _served(type(config)):
            raise ValueError(
                f'transformers\' {type(config).__name__} models do not support "sdpa", nor '
                f'"{_NAME}": use attn_implementation="eager"'
            )
        # Layers that share keys may be given a prompt's last queries only: the mask shows which.
        if getattr(config, "num_kv_shared_layers", None):
            kwargs["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)
    return mask


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _served(config: type) -> bool:
    """Whether transformers lets models of a config have "sdpa".

    The others would take our masks for some of another kind, or pass over parts of them.
    """
    if config not in _known:
        from transformers import PreTrainedModel

        kinds = [x for x in _subclasses(PreTrainedModel) if x.config_class is config]
        _known[config] = not kinds or any(x._supports_sdpa for x in kinds)
    return _known[config]


_known: dict[type, bool] = {}


def _subclasses(kind: Any) -> Iterator[Any]:
    for x in kind.__subclasses__():
        yield x
        yield from _subclasses(x)
