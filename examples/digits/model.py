"""A small transformer that reads a digit as a sequence of patches."""

from __future__ import annotations

import numpy as np
from nn import Array, Dropout, Gelu, Layer, LayerNorm, Linear
from numpy.typing import DTypeLike

from multihead import MultiheadAttention


class Block:
    """Pre-norm attention and a two-layer perceptron, each added to its input (N, L, E)."""

    def __init__(
        self, width: int, heads: int, dropout: float, rng: np.random.Generator, dtype: DTypeLike
    ) -> None:
        self.norm1 = LayerNorm(width, dtype)
        self.attention = MultiheadAttention(
            width, heads, dropout, batch_first=True, dtype=dtype, seed=int(rng.integers(2**31))
        )
        self.dropout1 = Dropout(dropout, rng)
        self.norm2 = LayerNorm(width, dtype)
        self.expand = Linear(width, 2 * width, rng, dtype)
        self.gelu = Gelu()
        self.contract = Linear(2 * width, width, rng, dtype)
        self.dropout2 = Dropout(dropout, rng)

    def __call__(self, x: Array, need_weights: bool = False) -> tuple[Array, Array | None]:
        """Return the new x and, on request, the weights of each head, (N, H, L, L)."""
        h = self.norm1(x)
        h, weights = self.attention(h, h, h, need_weights=need_weights, average_attn_weights=False)
        x = x + self.dropout1(h)
        h = self.contract(self.gelu(self.expand(self.norm2(x))))
        return x + self.dropout2(h), weights

    def backward(self, d_x: Array) -> Array:
        """Go back through the call, from its end to its start."""
        d_h = self.contract.backward(self.dropout2.backward(d_x))
        d_x = d_x + self.norm2.backward(self.expand.backward(self.gelu.backward(d_h)))
        d_out = self.dropout1.backward(d_x)
        d_h = np.empty_like(d_out)
        # query, key and value are one array: given thrice, d_h receives the sum.
        self.attention.backward(d_out, out=(d_h, d_h, d_h))
        return d_x + self.norm1.backward(d_h)


class Classifier:
    """Patches and learned positions, a class token, attention blocks, ten scores.

    Parameters and gradients are dicts over all layers, named `blocks.0.attention.bias_k` and so on.
    """

    def __init__(
        self,
        tokens: int,
        patch: int,
        *,
        width: int = 48,
        heads: int = 4,
        blocks: int = 2,
        classes: int = 10,
        dropout: float = 0.1,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.embed = Linear(patch, width, rng, dtype)
        self.position = rng.normal(0, 0.5, (tokens, width)).astype(dtype)
        self.token = rng.normal(0, 0.5, width).astype(dtype)
        self.learned = Layer(position=self.position, token=self.token)
        self.blocks = [Block(width, heads, dropout, rng, dtype) for _ in range(blocks)]
        self.norm = LayerNorm(width, dtype)
        self.head = Linear(width, classes, rng, dtype)

    def layers(self) -> dict[str, Layer | MultiheadAttention]:
        """Return every layer by its name."""
        named: dict[str, Layer | MultiheadAttention] = {}
        named |= {"embed": self.embed, "learned": self.learned}
        for i, block in enumerate(self.blocks):
            named |= {f"blocks.{i}.{name}": layer for name, layer in vars(block).items()}
        return named | {"norm": self.norm, "head": self.head}

    def __call__(self, x: Array, need_weights: bool = False) -> tuple[Array, list[Array | None]]:
        """Score patches (N, T, patch) as (N, classes); also each block's (N, H, T+1, T+1) weights.

        Token 0 is the class token. The weights are None without `need_weights`.
        """
        h = self.embed(x) + self.position
        token = np.broadcast_to(self.token, (len(x), 1, len(self.token)))
        h = np.concatenate([token, h], axis=1)
        maps = []
        for block in self.blocks:
            h, weights = block(h, need_weights)
            maps.append(weights)
        self._shape = h.shape
        return self.head(self.norm(h[:, 0])), maps

    def backward(self, d_scores: Array) -> None:
        """Add the gradients of all parameters, given that of the scores."""
        d_h = np.zeros(self._shape, d_scores.dtype)
        d_h[:, 0] = self.norm.backward(self.head.backward(d_scores))
        for block in reversed(self.blocks):
            d_h = block.backward(d_h)
        self.learned.grads["token"] += d_h[:, 0].sum(axis=0)
        self.learned.grads["position"] += d_h[:, 1:].sum(axis=0)
        self.embed.backward(d_h[:, 1:])

    def parameters(self) -> dict[str, Array]:
        """Return the live parameters of all layers."""
        return {
            f"{prefix}.{name}": array
            for prefix, layer in self.layers().items()
            for name, array in layer.parameters().items()
        }

    @property
    def grads(self) -> dict[str, Array]:
        """The accumulated gradients of all layers."""
        return {
            f"{prefix}.{name}": array
            for prefix, layer in self.layers().items()
            for name, array in layer.grads.items()
        }

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for layer in self.layers().values():
            layer.zero_grad()

    def train(self, mode: bool = True) -> None:
        """Switch all layers to training, or with False to evaluation."""
        for layer in self.layers().values():
            layer.train(mode)

    def load(self, parameters: dict[str, Array]) -> None:
        """Copy saved parameters in; names and shapes must be those of `parameters()`."""
        own = self.parameters()
        if own.keys() != parameters.keys():
            raise ValueError(f"parameters differ: {sorted(own.keys() ^ parameters.keys())}")
        for name, array in own.items():
            array[...] = parameters[name]
