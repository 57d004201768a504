"""Features of a layer's tokens as heads, turned by the tokens' positions; and back."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from multihead.arrays import Array
from multihead.layouts import Dense, RaggedBatch
from multihead.rope import Rope
from multihead.rotation import turned_by

Batch: TypeAlias = Dense | RaggedBatch


def split_heads(batch: Batch, x: Array, heads: int) -> Array:
    """View features (..., H * D) as (N, H, tokens, D); of packed sequences (total, H, D)."""
    split = x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
    if isinstance(batch, RaggedBatch):
        return split
    if not batch.batched:
        split = split[None]
    heads_first: Array = split.transpose(1, 2, 0, 3) if batch.tokens_first else split.swapaxes(1, 2)
    return heads_first


def merge_heads(batch: Batch, x: Array) -> Array:
    """Put heads side by side: the inverse of `split_heads`."""
    if isinstance(batch, Dense):
        x = x.transpose(2, 0, 1, 3) if batch.tokens_first else x.swapaxes(1, 2)
        x = x if batch.batched else x[0]
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


class Turn(NamedTuple):
    """The angles of tokens, (tokens, pairs) or, packed, (tokens, 1, pairs), and their pairing."""

    cosine: Array
    sine: Array
    layout: str

    def there(self, x: Array) -> Array:
        """Turn heads."""
        return turned_by(x, self.cosine, self.sine, self.layout)

    def back(self, x: Array) -> Array:
        """Turn gradients of heads back."""
        return turned_by(x, self.cosine, -self.sine, self.layout)


def turn_of(
    rope: Rope,
    head_dim: int,
    longest: int,
    positions: Array,
    like: tuple[Batch, np.dtype[np.floating]],
) -> Turn:
    """Return the angles of tokens at positions of sequences whose longest has so many."""
    batch, compute = like
    packed = isinstance(batch, RaggedBatch)
    angles = rope.angles(head_dim, longest, compute)
    cosine, sine = (x.T.take(positions, axis=0) for x in angles)
    if packed:
        cosine, sine = cosine[:, None], sine[:, None]
    return Turn(cosine, sine, rope.layout)
