"""A Llama in miniature: RMS norm, grouped heads with rotary positions and a window, SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from layers import Embedding, Matrix, RMSNorm, SwiGLU
from nn import Array, Layer
from numpy.typing import DTypeLike

import multihead as mh

Caches = list[mh.KVCache]


@dataclass(frozen=True)
class Sizes:
    """What makes the model large or small."""

    width: int = 128
    heads: int = 8
    key_heads: int = 2
    hidden: int = 320  # of SwiGLU
    blocks: int = 3
    window: int = 128  # how many bytes a head sees, the newest included
    symbols: int = 256


class Block:
    """Attention, then SwiGLU; each reads the normalised stream (N, L, E) and adds to it."""

    def __init__(self, sizes: Sizes, rng: np.random.Generator, dtype: DTypeLike) -> None:
        self.norm1 = RMSNorm(sizes.width, dtype)
        self.attention = mh.MultiheadAttention(
            sizes.width,
            sizes.heads,
            bias=False,
            num_kv_heads=sizes.key_heads,
            window=(sizes.window - 1, 0),
            rope=mh.Rope(),
            batch_first=True,
            dtype=dtype,
            seed=rng,
        )
        self.norm2 = RMSNorm(sizes.width, dtype)
        self.mlp = SwiGLU(sizes.width, sizes.hidden, rng, dtype)

    def __call__(self, x: Array, cache: mh.KVCache | None = None) -> Array:
        """Return the new stream; with a cache, x comes after what the cache holds."""
        h = self.norm1(x)
        h, _ = self.attention(h, h, h, need_weights=False, is_causal=True, kv_cache=cache)
        x = x + h
        return x + self.mlp(self.norm2(x))

    def backward(self, d_x: Array) -> Array:
        """Go back through the call, from its end to its start."""
        d_x = d_x + self.norm2.backward(self.mlp.backward(d_x))
        d_h = np.empty_like(d_x)
        # query, key and value are one array: given thrice, d_h receives the sum.
        self.attention.backward(d_x, out=(d_h, d_h, d_h))
        return d_x + self.norm1.backward(d_h)


class TinyLlama:
    """Scores of the next byte after each byte of a text."""

    def __init__(self, sizes: Sizes, seed: int = 0, dtype: DTypeLike = np.float32) -> None:
        rng = np.random.default_rng(seed)
        self.sizes = sizes
        self.embedding = Embedding(sizes.symbols, sizes.width, rng, dtype)
        self.blocks = [Block(sizes, rng, dtype) for _ in range(sizes.blocks)]
        self.norm = RMSNorm(sizes.width, dtype)
        self.head = Matrix(sizes.width, sizes.symbols, rng, dtype)

    def __call__(self, text: Array, caches: Caches | None = None) -> Array:
        """Score (N, L, symbols) what follows each byte (N, L); they come after what caches hold."""
        x = self.embedding(text)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i])
        return self.head(self.norm(x))

    def backward(self, d_scores: Array) -> None:
        """Add to the gradients of all parameters, given that of the scores."""
        d_x = self.norm.backward(self.head.backward(d_scores))
        for block in reversed(self.blocks):
            d_x = block.backward(d_x)
        self.embedding.backward(d_x)

    def new_caches(self, batch: int) -> Caches:
        """Return a cache for each block: twice the window, whatever the length of the text."""
        rows = 2 * self.sizes.window
        return [block.attention.new_kv_cache(batch, rows) for block in self.blocks]

    def layers(self) -> Iterator[tuple[str, Layer | mh.MultiheadAttention]]:
        """Yield everything that has parameters, and its name."""
        yield "embedding", self.embedding
        for i, block in enumerate(self.blocks):
            own = {"norm1": block.norm1, "attention": block.attention, "norm2": block.norm2}
            for name, layer in (own | vars(block.mlp)).items():
                if isinstance(layer, Layer | mh.MultiheadAttention):
                    yield f"blocks.{i}.{name}", layer
        yield "norm", self.norm
        yield "head", self.head

    def parameters(self) -> dict[str, Array]:
        """Return the live parameters of all layers."""
        return {f"{n}.{k}": x for n, layer in self.layers() for k, x in layer.parameters().items()}

    @property
    def grads(self) -> dict[str, Array]:
        """The accumulated gradients of all layers."""
        return {f"{n}.{k}": x for n, layer in self.layers() for k, x in layer.grads.items()}

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for _, layer in self.layers():
            layer.zero_grad()

    def train(self, mode: bool = True) -> None:
        """Switch all layers to training, or with False to evaluation."""
        for _, layer in self.layers():
            layer.train(mode)
