"""A block of the model that learns: forward, and backward in the opposite order.

The layers besides attention are those of `digits/nn.py`, with the weights of the trained model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from nn import Dropout, Layer, LayerNorm, Linear
from numpy.typing import DTypeLike

import multihead as mh
from sentences.gelu import one_plus_erf
from sentences.model_files import Array, Sizes

Part = Layer | mh.MultiheadAttention
erf = np.vectorize(math.erf, otypes=[np.float64])


class Gelu(Layer):
    """x times the normal distribution function at x."""

    def __call__(self, x: Array) -> Array:
        """Return the activations."""
        self._x = x
        if x.dtype == np.float64:
            self._below = (1 + erf(x / math.sqrt(2))) / 2
        else:
            self._below = one_plus_erf(x, np.empty_like(x), np.empty_like(x))
            self._below /= 2
        y: Array = x * self._below
        return y

    def backward(self, d_y: Array) -> Array:
        """Return d_y times the slope at x: what is below x, and x times the density there."""
        slope = self._x * self._x
        slope /= -2
        np.exp(slope, out=slope)
        slope *= 1 / math.sqrt(2 * math.pi)
        slope *= self._x
        slope += self._below
        slope *= d_y
        return slope


class Block:
    """x = norm(x + attention(x)), then x = norm(x + down(gelu(up(x)))), of tokens (total, E)."""

    def __init__(
        self,
        weights: dict[str, Array],
        name: str,
        sizes: Sizes,
        dropout: float = 0.0,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        rng = np.random.default_rng(seed)
        of = {
            key.removeprefix(f"encoder.layer.{name}."): x.astype(dtype)
            for key, x in weights.items()
            if key.startswith(f"encoder.layer.{name}.")
        }
        hidden = len(of["intermediate.dense.bias"])
        self.attention = mh.MultiheadAttention(
            sizes.width, sizes.heads, dropout, dtype=dtype, seed=rng
        )
        whole = {
            f"in_proj_{kind}": np.concatenate(
                [of[f"attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            for kind in ("weight", "bias")
        }
        last = {
            f"out_proj.{kind}": of[f"attention.output.dense.{kind}"] for kind in ("weight", "bias")
        }
        self.attention.load_state_dict(whole | last)
        self.norm1 = LayerNorm(sizes.width, dtype, sizes.eps)
        self.up = Linear(sizes.width, hidden, rng, dtype)
        self.gelu = Gelu()
        self.down = Linear(hidden, sizes.width, rng, dtype)
        self.norm2 = LayerNorm(sizes.width, dtype, sizes.eps)
        self.dropouts = Dropout(dropout, rng), Dropout(dropout, rng)
        for key, layer in {
            "attention.output.LayerNorm": self.norm1,
            "intermediate.dense": self.up,
            "output.dense": self.down,
            "output.LayerNorm": self.norm2,
        }.items():
            for kind, parameter in layer.parameters().items():
                parameter[...] = of[f"{key}.{kind}"]

    def __call__(self, x: Array, starts: Array) -> Array:
        """Return the tokens after this block; sequences begin at `starts`."""
        self._starts = starts
        batch = mh.Ragged(x, starts)
        h, _ = self.attention(batch, batch, batch, need_weights=False)
        x = self.norm1(x + self.dropouts[0](h.values))
        h = self.down(self.gelu(self.up(x)))
        return self.norm2(x + self.dropouts[1](h))

    def backward(self, d_y: Array) -> Array:
        """Go back through the call, from its end to its start."""
        d_x = self.norm2.backward(d_y)
        d_h = self.down.backward(self.dropouts[1].backward(d_x))
        d_x = d_x + self.up.backward(self.gelu.backward(d_h))
        d_x = self.norm1.backward(d_x)
        d_h = mh.Ragged(self.dropouts[0].backward(d_x), self._starts)
        d_in = mh.Ragged(np.empty_like(d_x), self._starts)
        # query, key and value are one array: given thrice, d_in receives the sum
        self.attention.backward(d_h, out=(d_in, d_in, d_in))
        return d_x + d_in.values

    def layers(self) -> Iterator[tuple[str, Part]]:
        """Yield what has parameters or a mode, and its name."""
        for name, layer in vars(self).items():
            if isinstance(layer, Part):
                yield name, layer
        for i, layer in enumerate(self.dropouts):
            yield f"dropout{i + 1}", layer
