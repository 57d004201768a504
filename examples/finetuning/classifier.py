"""The last blocks of the model and a head on its embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from nn import Linear

from finetuning.block import Block, Part
from sentences.model_files import Array


class Pool:
    """The mean over the tokens of each sentence, made of length sqrt(E): entries are about 1."""

    def __call__(self, x: Array, starts: Array) -> Array:
        """Return (N, E) for tokens (total, E)."""
        self._lengths = np.diff(starts)
        mean = np.add.reduceat(x, starts[:-1], axis=0) / self._lengths[:, None].astype(x.dtype)
        self._scale = np.sqrt(x.dtype.type(x.shape[1]) / np.vecdot(mean, mean))[:, None]
        self._y: Array = mean * self._scale
        return self._y

    def backward(self, d_y: Array) -> Array:
        """Take from d_y what would only lengthen the mean; share the rest among the tokens."""
        along = np.vecdot(d_y, self._y)[:, None] / d_y.shape[1]
        d_mean = (d_y - self._y * along) * self._scale
        d_x: Array = np.repeat(d_mean / self._lengths[:, None].astype(d_y.dtype), self._lengths, 0)
        return d_x


class Classifier:
    """Blocks, pool and a linear head: scores (N, classes) of the sentences of a batch."""

    def __init__(self, blocks: list[Block], head: Linear) -> None:
        self.blocks, self.head, self.pool = blocks, head, Pool()

    def __call__(self, x: Array, starts: Array) -> Array:
        """Return the scores, for tokens (total, E) as the blocks before leave them."""
        for block in self.blocks:
            x = block(x, starts)
        return self.head(self.pool(x, starts))

    def backward(self, d_scores: Array) -> None:
        """Add to the gradients of all parameters."""
        d_x = self.pool.backward(self.head.backward(d_scores))
        for block in reversed(self.blocks):
            d_x = block.backward(d_x)

    def layers(self) -> Iterator[tuple[str, Part]]:
        """Yield everything that has parameters or a mode, and its name."""
        for i, block in enumerate(self.blocks):
            for name, layer in block.layers():
                yield f"{i}.{name}", layer
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
