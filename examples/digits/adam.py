"""Adam with decoupled weight decay, and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Adam:
    """Update parameters in place, as Kingma and Ba (2015); decay of Loshchilov and Hutter (2019).

    Only matrices decay: biases and the scales of layer norm are left alone.
    """

    def __init__(
        self,
        parameters: Arrays,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.parameters, self.betas = parameters, betas
        self.eps, self.weight_decay = eps, weight_decay
        self.steps = 0
        self._mean = {name: np.zeros_like(p) for name, p in parameters.items()}
        self._square = {name: np.zeros_like(p) for name, p in parameters.items()}

    def step(self, grads: Arrays, learning_rate: float) -> None:
        """Take one step down the gradients, given by the parameters' names."""
        self.steps += 1
        beta1, beta2 = self.betas
        rate = learning_rate / (1 - beta1**self.steps)
        unbias = 1 / (1 - beta2**self.steps)
        for name, parameter in self.parameters.items():
            grad, mean, square = grads[name], self._mean[name], self._square[name]
            mean += (1 - beta1) * (grad - mean)
            square += (1 - beta2) * (grad * grad - square)
            if parameter.ndim > 1:
                parameter *= 1 - learning_rate * self.weight_decay
            parameter -= rate * mean / (np.sqrt(unbias * square) + self.eps)


def warmup_cosine(step: int, steps: int, peak: float, warmup: float = 0.1) -> float:
    """Rise linearly to `peak` in the first `warmup` share of the steps, fall to 0 on a cosine."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
