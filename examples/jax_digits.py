"""Train a small transformer on handwritten digits in flax, with `multihead` doing the attention.

python examples/jax_digits.py --seed 0 --epochs 60
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "digits"))

try:
    import jax
    import jax.numpy as jnp
    import optax
    from data import Split, jitter, load_split, patches
    from flax import nnx
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from multihead.jax import attention_fn
except ModuleNotFoundError as why:
    raise SystemExit(f'{why}: pip install "multihead[flax]"') from None

PATCH = 2
TOKENS = (8 // PATCH) ** 2
WIDTH = 48
BATCH = 64
PEAK_RATE = 5e-3
SMOOTHING = 0.1

Report = Callable[[int, float, float], None]


class Block(nnx.Module):
    """Pre-norm attention and a two-layer perceptron, each added to its input (N, L, E)."""

    def __init__(self, dropout: float, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=4,
            in_features=WIDTH,
            dropout_rate=dropout,
            attention_fn=attention_fn,
            decode=False,
            rngs=rngs,
        )
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.expand = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.contract = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the new x."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        h = self.contract(nnx.gelu(self.expand(self.norm2(x))))
        return x + self.dropout(h)


class Classifier(nnx.Module):
    """Patches and learned positions, a class token, two blocks, ten scores."""

    def __init__(self, rngs: nnx.Rngs, dropout: float = 0.1) -> None:
        draw = nnx.initializers.normal(0.5)
        self.embed = nnx.Linear(PATCH * PATCH, WIDTH, rngs=rngs)
        self.position = nnx.Param(draw(rngs.params(), (TOKENS, WIDTH)))
        self.token = nnx.Param(draw(rngs.params(), (1, 1, WIDTH)))
        self.blocks = nnx.List([Block(dropout, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the scores (N, 10) of patches (N, T, 4)."""
        x = self.embed(images) + self.position
        x = jnp.concatenate([jnp.broadcast_to(self.token, (len(x), 1, WIDTH)), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def tokens(images: Any) -> jax.Array:
    """Cut images (N, 8, 8) into patches (N, 16, 4) of about zero mean and unit variance."""
    return jnp.asarray((patches(images, PATCH) - 0.3) / 0.4, jnp.float32)


@nnx.jit
def step(
    model: Classifier, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Take one step and return the loss."""

    def loss(model: Classifier) -> jax.Array:
        target = optax.smooth_labels(jax.nn.one_hot(labels, 10), SMOOTHING)
        return optax.softmax_cross_entropy(model(images), target).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


@nnx.jit
def read(model: Classifier, images: jax.Array) -> jax.Array:
    """Return the digits that the model sees."""
    return model(images).argmax(1)


def train(split: Split, seed: int, epochs: int, report: Report) -> Classifier:
    """Train a model; `report(epoch, mean loss, held-out accuracy)` is called after each epoch."""
    model = Classifier(nnx.Rngs(seed))
    rng = np.random.default_rng([seed, 1])
    batches = len(split.train_labels) // BATCH
    steps = epochs * batches
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, steps // 10, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(rate, b2=0.99, weight_decay=0.01), wrt=nnx.Param)
    for epoch in range(1, epochs + 1):
        model.train()
        order = rng.permutation(len(split.train_labels))[: batches * BATCH].reshape(-1, BATCH)
        losses = [
            step(
                model,
                optimizer,
                tokens(jitter(split.train_images[batch], rng)),
                jnp.asarray(split.train_labels[batch]),
            )
            for batch in order
        ]
        report(epoch, float(np.mean(losses)), accuracy(model, split))
    return model


def accuracy(model: Classifier, split: Split) -> float:
    """Return the share of the held-out digits that the model names rightly."""
    model.eval()
    return float(np.mean(read(model, tokens(split.test_images)) == split.test_labels))


def main() -> None:
    """Train and tell of it."""
    parser = argparse.ArgumentParser(description="Train a small transformer in flax.")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the model, the batches")
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {options.epochs}")

    split = load_split(options.seed)
    print(f"{len(split.train_labels)} scans to train on, {len(split.test_labels)} held out")
    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=options.epochs)

        def report(epoch: int, loss: float, held_out: float) -> None:
            progress.print(f"epoch {epoch:3}   loss {loss:.4f}   held-out accuracy {held_out:7.2%}")
            progress.advance(task)

        model = train(split, options.seed, options.epochs, report)
    seconds = time.perf_counter() - started
    print(f"test accuracy   {accuracy(model, split):.2%} after {seconds:.1f} s of training")


if __name__ == "__main__":
    main()
