"""Small models of Hugging Face's, and our attention function as they call it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from multihead.torch import register_transformers


@contextlib.contextmanager
def registration() -> Iterator[None]:
    """Register our function, and undo it."""
    kinds = (AttentionInterface, AttentionMaskInterface)
    before = [dict(kind._global_mapping) for kind in kinds]
    register_transformers()
    yield
    for kind, mapping in zip(kinds, before, strict=True):
        kind._global_mapping.clear()
        kind._global_mapping.update(mapping)


def lively(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Parameters so large that attention is felt in the outputs; no dropout."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.3)
    return model.to(dtype).eval()


def bert(**options: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=37,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=31,
        max_position_embeddings=29,
        **options,
    )
    return transformers.BertModel(config)


def llama(kv_heads: int = 2, **options: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=41,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        intermediate_size=29,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


def padded(where: str, n: int = 3, length: int = 11) -> torch.Tensor | None:
    """A padding mask, 1 = a token; the first sequence is whole, the others are shorter."""
    if where == "none":
        return None
    missing = torch.tensor([0, 4, 9])[:n, None]
    steps = torch.arange(length)
    tokens = steps >= missing if where == "left" else steps < length - missing
    return tokens.long()


def words(n: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(3, 37, (n, length))


def mistral() -> Any:
    """Grouped heads, and a window in every layer."""
    config = transformers.MistralConfig(
        vocab_size=37,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=31,
        sliding_window=4,
        pad_token_id=0,
    )
    return transformers.MistralForCausalLM(config)


def capped() -> Any:
    """Gemma 2: capped scores, grouped heads, and a window in every other layer."""
    config = transformers.Gemma2Config(
        vocab_size=37,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=31,
        sliding_window=4,
        attn_logit_softcapping=2.0,
        pad_token_id=0,
    )
    return transformers.Gemma2ForCausalLM(config)


def with_sinks() -> Any:
    """gpt-oss: a learned sink for each head, grouped heads and windows."""
    config = transformers.GptOssConfig(
        vocab_size=37,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        sliding_window=4,
        num_local_experts=2,
        num_experts_per_tok=1,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.GptOssForCausalLM(config)


def attend(*args: Any, **options: Any) -> tuple[torch.Tensor, None]:
    out: tuple[torch.Tensor, None] = AttentionInterface._global_mapping["multihead"](
        *args, **options
    )
    return out


class Layer(torch.nn.Module):
    """What transformers' function asks of a module."""

    def __init__(self, groups: int, causal: bool | None) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        if causal is not None:
            self.is_causal = causal
