"""Small models that call PyTorch's attention functions, as public ones do, or attend by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 (as models have it)
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


class VisionAttention(torch.nn.Module):
    """One product for query, key and value, as in vision transformers."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.proj = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        p = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return self.proj(x.transpose(1, 2).reshape(n, length, width))


class VisionBlock(torch.nn.Module):
    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = VisionAttention(width, heads, dropout)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vision(torch.nn.Module):
    def __init__(self, width: int = 12, heads: int = 3, depth: int = 2, dropout: float = 0) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(VisionBlock(width, heads, dropout) for _ in range(depth))
        self.checkpoints: bool | None = None  # whether they are reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            if self.checkpoints is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.checkpoints)
        return x

    @staticmethod
    def inputs() -> tuple[Any, ...]:
        return (torch.randn(2, 7, 12),)


class SpeechAttention(torch.nn.Module):
    """Of what it hears, or of another sequence, in a method of its own; imports by name."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.out = (torch.nn.Linear(width, width) for _ in range(3))
        self.key = torch.nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, other: Any = None, mask: Any = None) -> torch.Tensor:
        source = x if other is None else other
        return self.out(self.attend(self.query(x), self.key(source), self.value(source), mask))

    def attend(self, q: Any, k: Any, v: Any, mask: Any) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        causal = mask is not None and q.shape[2] > 1
        x = scaled_dot_product_attention(q, k, v, is_causal=causal)
        return x.transpose(1, 2).flatten(2)


class Speech(torch.nn.Module):
    """A decoder that listens to what an encoder heard."""

    def __init__(self, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.heard = SpeechAttention(width, heads)
        self.said = SpeechAttention(width, heads)
        self.cross = SpeechAttention(width, heads)

    def forward(self, text: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        sound = sound + self.heard(sound)
        text = text + self.said(text, mask=True)
        return text + self.cross(text, sound)

    @staticmethod
    def inputs() -> tuple[Any, ...]:
        return torch.randn(2, 5, 12), torch.randn(2, 9, 12)


def attend_in_groups(q: Any, k: Any, v: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Language(torch.nn.Module):
    """Fewer heads of key and value, by way of a function."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = (torch.nn.Linear(16, x, bias=False) for x in (16, 8, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 4)).transpose(1, 2).split(1, 1)
        return self.o(attend_in_groups(q, k, v).transpose(1, 2).flatten(2))

    @staticmethod
    def inputs() -> tuple[Any, ...]:
        return (torch.randn(2, 6, 16),)


class Reader(torch.nn.Module):
    """Holds a layer for its parameters, and calls the layer's function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.MultiheadAttention(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = F.multi_head_attention_forward(
            x,
            x,
            x,
            self.layer.embed_dim,
            self.layer.num_heads,
            self.layer.in_proj_weight,
            self.layer.in_proj_bias,
            None,
            None,
            False,
            0.0,
            self.layer.out_proj.weight,
            self.layer.out_proj.bias,
            training=self.training,
            need_weights=False,
        )
        return out

    @staticmethod
    def inputs() -> tuple[Any, ...]:
        return (torch.randn(7, 3, 12),)


class Processor:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Processed(torch.nn.Module):
    """Leaves attention to an object that it holds, which is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.processor = Processor()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.processor(x)

    @staticmethod
    def inputs() -> tuple[Any, ...]:
        return (torch.randn(2, 3, 5, 4),)


class Hidden(torch.nn.Module):
    """Makes the function's name while it runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(F, "_".join(["scaled", "dot", "product", "attention"]))(x, x, x)

    @staticmethod
    def inputs() -> tuple[Any, ...]:
        return (torch.randn(2, 3, 5, 4),)


class ByHand(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.mT / 2).softmax(-1) @ x


MODELS: dict[str, Any] = {
    "vision": Vision,
    "speech": Speech,
    "language": Language,
    "reader": Reader,
    "processed": Processed,
    "hidden": Hidden,
}
