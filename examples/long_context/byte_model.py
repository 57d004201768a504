"""A causal transformer over bytes, of which each rank computes its part of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multihead import Rope
from multihead.distributed import ContextParallel
from multihead.torch import MultiheadAttention


@dataclass(frozen=True)
class Sizes:
    """What makes the model large or small."""

    width: int = 128
    heads: int = 8
    key_heads: int = 2
    hidden: int = 320
    blocks: int = 2
    symbols: int = 256


class Block(nn.Module):
    """Attention, then two layers; each reads the normalised stream (1, L_r, E) and adds to it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(sizes.width)
        self.attention = MultiheadAttention(
            sizes.width,
            sizes.heads,
            bias=False,
            num_kv_heads=sizes.key_heads,
            rope=Rope(),
            batch_first=True,
        )
        self.norm2 = nn.RMSNorm(sizes.width)
        self.up = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new stream."""
        h = self.norm1(x)
        h, _ = self.attention(h, h, h, need_weights=False, is_causal=True)
        x = x + h
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return y


class ByteModel(nn.Module):
    """Scores of the next byte after each byte of a text; only attention knows of other ranks."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.symbols, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.RMSNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.symbols, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Score (1, L_r, symbols) what follows each byte (1, L_r)."""
        x = self.embedding(text)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


def loss_of(model: ByteModel, text: Tensor, following: Tensor, length: int) -> Tensor:
    """Return this rank's part of the mean cross-entropy, in nats a byte, of a text of a length."""
    scores = model(text)[0]
    return nn.functional.cross_entropy(scores, following[0], reduction="sum") / length


def sharded_model(seed: int, sizes: Sizes, ranks: ContextParallel) -> ByteModel:
    """Make a model, with the same numbers on every rank, whose attention is that of all ranks."""
    torch.manual_seed(seed)
    model = ByteModel(sizes)
    for block in model.blocks:
        block.attention.parallel(ranks.communicator, scheme=ranks.scheme, sharding=ranks.sharding)
    return model
