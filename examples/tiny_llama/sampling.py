"""Writing, a byte at a time, with a cache of keys and values and without; and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from llama import TinyLlama
from nn import Array


@dataclass(frozen=True)
class Choice:
    """How the next byte is drawn: among the likeliest; one of them is greedy."""

    temperature: float = 0.8
    top_k: int = 40
    seed: int = 0


def draw(scores: Array, choice: Choice, rng: np.random.Generator) -> int:
    """Draw a byte by its scores (256,)."""
    likely = np.argsort(scores)[-choice.top_k :]
    exponents = scores[likely].astype(np.float64) / choice.temperature
    p = np.exp(exponents - exponents.max())
    return int(rng.choice(likely, p=p / p.sum()))


def sample(
    model: TinyLlama, prompt: bytes, count: int, choice: Choice, cached: bool = True
) -> Iterator[int]:
    """Yield the bytes that a model writes after a prompt.

    With caches, a step computes the newest byte and attends to the keys of the others; without,
    it computes the whole text again.
    """
    model.train(False)
    rng = np.random.default_rng(choice.seed)
    text = list(prompt)
    caches = model.new_caches(1) if cached else None
    unread = 0  # where the bytes begin that the caches have not seen
    for _ in range(count):
        scores = model(np.array([text[unread:]], np.uint8), caches)
        unread = len(text) if cached else 0
        text.append(draw(scores[0, -1], choice, rng))
        yield text[-1]


def speed(model: TinyLlama, context: bytes, count: int, cached: bool) -> float:
    """Return how many bytes a second a model writes after a text, once it has read it."""
    written = sample(model, context, count + 1, Choice(), cached)
    next(written)  # reads the text
    started = time.perf_counter()
    for _ in written:
        pass
    return count / (time.perf_counter() - started)
