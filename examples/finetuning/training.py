"""Training: the head on the frozen model, then the head and the last blocks together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from adam import Adam, warmup_cosine
from nn import Linear, cross_entropy

import multihead as mh
from finetuning.classifier import Classifier
from sentences.model_files import Array

HEAD_STEPS = 400
HEAD_DECAYS = (0.1, 1.0, 3.0, 10.0)
BATCH = 32


@dataclass(frozen=True)
class Score:
    """How good a classifier is: mean cross-entropy and share of hits."""

    loss: float
    accuracy: float

    @classmethod
    def of(cls, scores: Array, labels: Array) -> Score:
        """Compare scores (N, classes) with labels (N,)."""
        hits = scores.argmax(axis=1) == labels
        return cls(cross_entropy(scores, labels)[0], float(hits.mean()))


@dataclass(frozen=True)
class Plan:
    """How to fine-tune; the rates are the highest, after warm-up and before the cosine's fall."""

    epochs: int
    seed: int  # of the order of sentences
    rate: float = 2e-4
    head_rate: float = 2e-3
    smoothing: float = 0.0  # of the labels


@dataclass(frozen=True)
class Places:
    """Where in the data to learn, to choose and to test."""

    learned: Array
    validated: Array
    tested: Array


def train_head(x: Array, labels: Array, places: Places, classes: int) -> Linear:
    """Train a head on embeddings (N, E); validation chooses the decay and when to stop."""
    best, least = None, np.inf
    for decay in HEAD_DECAYS:
        head = Linear(x.shape[1], classes, np.random.default_rng(0))
        head.weight.fill(0)
        adam = Adam(head.parameters(), weight_decay=decay)
        for step in range(HEAD_STEPS):
            head.zero_grad()
            head.backward(cross_entropy(head(x[places.learned]), labels[places.learned])[1])
            adam.step(head.grads, warmup_cosine(step, HEAD_STEPS, 5e-3))
            if step % 10 == 9:
                loss = cross_entropy(head(x[places.validated]), labels[places.validated])[0]
                if loss < least:
                    best = {name: p.copy() for name, p in head.parameters().items()}
                    least = loss
    assert best is not None
    for name, parameter in head.parameters().items():
        parameter[...] = best[name]
    return head


def scores_of(model: Classifier, tokens: list[Array], places: Array) -> Array:
    """Return the scores of the sentences at some places, in evaluation."""
    model.train(False)
    parts = []
    for first in range(0, len(places), BATCH):
        batch = mh.Ragged.from_list([tokens[i] for i in places[first : first + BATCH]])
        parts.append(model(batch.values, batch.offsets))
    return np.concatenate(parts)


def epoch(
    model: Classifier,
    data: tuple[list[Array], Array],
    order: Array,
    smoothing: float,
    step: Callable[[], None],
) -> float:
    """Go through the sentences once, in an order, with a step for each batch; return the loss."""
    tokens, labels = data
    model.train()
    total = 0.0
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        batch = mh.Ragged.from_list([tokens[i] for i in chosen])
        scores = model(batch.values, batch.offsets)
        loss, d_scores = cross_entropy(scores, labels[chosen], smoothing)
        model.zero_grad()
        model.backward(d_scores)
        step()
        total += loss * len(chosen)
    return total / len(order)


def fine_tune(
    model: Classifier,
    data: tuple[list[Array], Array],
    places: Places,
    plan: Plan,
    say: Callable[[int, float, Score], None],
) -> Score:
    """Train blocks and head; return the test's score at the epoch that validation chooses.

    ``say(epoch, loss, validation)`` is called after each epoch.
    """
    tokens, labels = data
    rng = np.random.default_rng(plan.seed)
    steps, taken = plan.epochs * -(-len(places.learned) // BATCH), 0
    parameters = model.parameters()
    blocks = Adam({name: p for name, p in parameters.items() if not name.startswith("head")})
    head = Adam({name: p for name, p in parameters.items() if name.startswith("head")})

    def step() -> None:
        nonlocal taken
        grads = model.grads
        blocks.step(grads, warmup_cosine(taken, steps, plan.rate))
        head.step(grads, warmup_cosine(taken, steps, plan.head_rate))
        taken += 1

    chosen, least = None, np.inf
    for n in range(1, plan.epochs + 1):
        loss = epoch(model, data, rng.permutation(places.learned), plan.smoothing, step)
        validation = Score.of(scores_of(model, tokens, places.validated), labels[places.validated])
        say(n, loss, validation)
        if validation.loss < least:
            least = validation.loss
            chosen = Score.of(scores_of(model, tokens, places.tested), labels[places.tested])
    assert chosen is not None
    return chosen
