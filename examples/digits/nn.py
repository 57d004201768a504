"""The layers around attention, forward and backward, in plain NumPy.

Each layer follows the manners of `multihead.MultiheadAttention`: calling it keeps what its
`backward` needs, parameter gradients accumulate in `grads`, and `parameters()` hands out the live
arrays by name. Inputs are (..., features); a backward returns the gradient of the input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


class Layer:
    """Named parameters with their accumulated gradients, and the training switch."""

    def __init__(self, **parameters: Array) -> None:
        self.training = True
        self.grads = {name: np.zeros_like(array) for name, array in parameters.items()}
        self._parameters = parameters

    def parameters(self) -> dict[str, Array]:
        """Return the parameters themselves, by name."""
        return dict(self._parameters)

    def train(self, mode: bool = True) -> Layer:
        """Switch between training and evaluation."""
        self.training = mode
        return self

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for grad in self.grads.values():
            grad.fill(0)


class Linear(Layer):
    """y = x W^T + b, with W (fan_out, fan_in) drawn as Glorot and Bengio (2010) advise."""

    def __init__(
        self, fan_in: int, fan_out: int, rng: np.random.Generator, dtype: DTypeLike = np.float32
    ) -> None:
        bound = np.sqrt(6 / (fan_in + fan_out))
        self.weight = rng.uniform(-bound, bound, (fan_out, fan_in)).astype(dtype)
        self.bias = np.zeros(fan_out, dtype)
        super().__init__(weight=self.weight, bias=self.bias)

    def __call__(self, x: Array) -> Array:
        """Return x W^T + b."""
        self._x = x
        y: Array = x @ self.weight.T + self.bias
        return y

    def backward(self, d_y: Array) -> Array:
        """Add to the gradients of W and b; return d_y W."""
        rows, d_rows = self._x.reshape(-1, self._x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
        self.grads["weight"] += d_rows.T @ rows
        self.grads["bias"] += d_rows.sum(axis=0)
        d_x: Array = d_y @ self.weight
        return d_x


class LayerNorm(Layer):
    """Zero mean and unit variance over the features, then a learned scale and shift."""

    def __init__(self, features: int, dtype: DTypeLike = np.float32, eps: float = 1e-5) -> None:
        self.weight, self.bias, self.eps = np.ones(features, dtype), np.zeros(features, dtype), eps
        super().__init__(weight=self.weight, bias=self.bias)

    def __call__(self, x: Array) -> Array:
        """Return the normalised, scaled and shifted x."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        self._inverse_std = 1 / np.sqrt(variance + self.eps)
        self._normal = centred * self._inverse_std
        y: Array = self._normal * self.weight + self.bias
        return y

    def backward(self, d_y: Array) -> Array:
        """Take from d_x what would only move the mean or the variance."""
        features = d_y.shape[-1]
        self.grads["weight"] += (d_y * self._normal).reshape(-1, features).sum(axis=0)
        self.grads["bias"] += d_y.reshape(-1, features).sum(axis=0)
        d_normal = d_y * self.weight
        along = (d_normal * self._normal).mean(axis=-1, keepdims=True)
        d_centred = d_normal - d_normal.mean(axis=-1, keepdims=True) - self._normal * along
        d_x: Array = d_centred * self._inverse_std
        return d_x


class Gelu(Layer):
    """x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), of Hendrycks and Gimpel (2016)."""

    _c = 0.7978845608028654  # sqrt(2 / pi), a Python float, so that float32 stays float32

    def __call__(self, x: Array) -> Array:
        """Return the activations."""
        self._x = x
        self._tanh = np.tanh(self._c * x * (1 + 0.044715 * x * x))
        y: Array = 0.5 * x * (1 + self._tanh)
        return y

    def backward(self, d_y: Array) -> Array:
        """Return d_y times the slope at x."""
        x, t = self._x, self._tanh
        d_inner = self._c * (1 + 3 * 0.044715 * x * x)
        d_x: Array = d_y * 0.5 * (1 + t + x * (1 - t * t) * d_inner)
        return d_x


class Dropout(Layer):
    """In training, zero each entry with probability p and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float, rng: np.random.Generator) -> None:
        super().__init__()
        self.p, self._rng = p, rng

    def __call__(self, x: Array) -> Array:
        """Draw a new mask in training; return x as it is otherwise."""
        self._scale: Array | None = None
        if not self.training or self.p == 0:
            return x
        kept = self._rng.random(x.shape, dtype=np.float32) >= self.p
        self._scale = kept / x.dtype.type(1 - self.p)
        return x * self._scale

    def backward(self, d_y: Array) -> Array:
        """Apply the mask of the last call."""
        return d_y if self._scale is None else d_y * self._scale


def cross_entropy(scores: Array, labels: Array, smoothing: float = 0.0) -> tuple[float, Array]:
    """Mean cross-entropy of scores (N, C) with labels (N,), and its gradient (N, C).

    `smoothing` spreads that share of each target evenly over all classes.
    """
    count, classes = scores.shape
    log_p = scores - scores.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    target = np.full_like(scores, smoothing / classes)
    target[np.arange(count), labels] += 1 - smoothing
    return -float((target * log_p).sum()) / count, (np.exp(log_p) - target) / count
