"""Steps down the gradient, and the loss on text that was held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from adam import Adam, warmup_cosine
from llama import TinyLlama
from nn import Array, cross_entropy
from text import Batch

PEAK_RATE = 4e-3
LARGEST_NORM = 1.0

Report = Callable[[int, float], None]


def loss_of(model: TinyLlama, batch: Batch) -> tuple[float, Array]:
    """Return the mean cross-entropy in nats a byte, and the gradient of the scores (N, L, 256)."""
    text, following = batch
    scores = model(text)
    loss, d_scores = cross_entropy(scores.reshape(-1, scores.shape[-1]), following.ravel())
    return loss, d_scores.reshape(scores.shape)


def clip(grads: dict[str, Array], largest: float) -> None:
    """Shorten gradients, taken as one vector, to a norm."""
    norm = np.sqrt(sum(float(np.vdot(grad, grad)) for grad in grads.values()))
    if norm > largest:
        for grad in grads.values():
            grad *= largest / norm


def train(model: TinyLlama, batches: Iterable[Batch], steps: int, report: Report) -> None:
    """Take a step for each batch; ``report(step, loss)`` is called after each."""
    adam = Adam(model.parameters())
    for step, batch in zip(range(steps), batches, strict=False):
        model.train()
        loss, d_scores = loss_of(model, batch)
        model.zero_grad()
        model.backward(d_scores)
        grads = model.grads
        clip(grads, LARGEST_NORM)
        adam.step(grads, warmup_cosine(step, steps, PEAK_RATE))
        report(step, loss)


def held_out_loss(model: TinyLlama, batches: Iterable[Batch]) -> float:
    """Return the mean loss over batches, in nats a byte."""
    model.train(False)
    total, size = 0.0, 0
    for batch in batches:
        total += loss_of(model, batch)[0] * batch[0].size
        size += batch[0].size
    return total / size
