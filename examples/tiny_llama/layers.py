"""The layers around attention in models of today, forward and backward, in plain NumPy.

They keep the manners of `digits/nn.py`, where `Layer` is. Inputs are (N, L, features).
"""

from __future__ import annotations

import numpy as np
from nn import Array, Layer
from numpy.typing import DTypeLike


def rows(x: Array) -> Array:
    """View (N, L, features) as (N * L, features): for one large product, not N small ones."""
    return x.reshape(-1, x.shape[-1])


def mean_product(x: Array, y: Array) -> Array:
    """Return the mean of x * y over the features, (N, L, 1)."""
    mean: Array = np.einsum("nle,nle->nl", x, y)[..., None] / x.shape[-1]
    return mean


class Matrix(Layer):
    """y = x W^T, with W (fan_out, fan_in)."""

    def __init__(
        self, fan_in: int, fan_out: int, rng: np.random.Generator, dtype: DTypeLike = np.float32
    ) -> None:
        self.weight = rng.normal(0, fan_in**-0.5, (fan_out, fan_in)).astype(dtype)
        super().__init__(weight=self.weight)

    def __call__(self, x: Array) -> Array:
        """Return x W^T."""
        self._x = x
        y: Array = rows(x) @ self.weight.T
        return y.reshape(*x.shape[:-1], -1)

    def backward(self, d_y: Array) -> Array:
        """Add to the gradient of W; return d_y W."""
        self.grads["weight"] += rows(d_y).T @ rows(self._x)
        d_x: Array = rows(d_y) @ self.weight
        return d_x.reshape(self._x.shape)


class RMSNorm(Layer):
    """x over its root mean square, then a learned scale (Zhang and Sennrich, 2019)."""

    def __init__(self, features: int, dtype: DTypeLike = np.float32, eps: float = 1e-6) -> None:
        self.weight, self.eps = np.ones(features, dtype), eps
        super().__init__(weight=self.weight)

    def __call__(self, x: Array) -> Array:
        """Return the normalised and scaled x."""
        square = mean_product(x, x)
        self._inverse = 1 / np.sqrt(square + self.eps)
        self._normal = x * self._inverse
        y: Array = self._normal * self.weight
        return y

    def backward(self, d_y: Array) -> Array:
        """Take from d_x what would only move the root mean square."""
        self.grads["weight"] += np.einsum("nle,nle->e", d_y, self._normal)
        d_normal = d_y * self.weight
        along = mean_product(d_normal, self._normal)
        d_x: Array = (d_normal - self._normal * along) * self._inverse
        return d_x


class Embedding(Layer):
    """A learned row for each symbol."""

    def __init__(
        self,
        symbols: int,
        features: int,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.weight = rng.normal(0, 0.5, (symbols, features)).astype(dtype)
        super().__init__(weight=self.weight)

    def __call__(self, text: Array) -> Array:
        """Return (N, L, features) for symbols (N, L)."""
        self._text = text
        y: Array = self.weight[text]
        return y

    def backward(self, d_y: Array) -> None:
        """Add to the gradients of the rows that were taken."""
        taken = np.eye(len(self.weight), dtype=d_y.dtype)[self._text.ravel()]
        self.grads["weight"] += taken.T @ rows(d_y)


class SwiGLU:
    """down(silu(gate(x)) * up(x)), of Shazeer (2020)."""

    def __init__(
        self, features: int, hidden: int, rng: np.random.Generator, dtype: DTypeLike = np.float32
    ) -> None:
        self.gate, self.up = (Matrix(features, hidden, rng, dtype) for _ in range(2))
        self.down = Matrix(hidden, features, rng, dtype)

    def __call__(self, x: Array) -> Array:
        """Return what goes to the residual stream."""
        self._gate, self._up = self.gate(x), self.up(x)
        self._sigmoid = 1 / (1 + np.exp(-self._gate))
        self._silu = self._gate * self._sigmoid
        return self.down(self._silu * self._up)

    def backward(self, d_y: Array) -> Array:
        """Return the gradient of x."""
        d_product = self.down.backward(d_y)
        d_x = self.up.backward(d_product * self._silu)
        slope = self._sigmoid + self._silu * (1 - self._sigmoid)  # of silu at the gate
        return d_x + self.gate.backward(d_product * self._up * slope)
