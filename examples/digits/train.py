"""Train a small transformer on handwritten digits, with `multihead` doing the attention.

python examples/digits/train.py --seed 0 --epochs 60 --out digits-out
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

try:
    from adam import Adam, warmup_cosine
    from data import Split, jitter, load_split, patches
    from model import Classifier
    from nn import Array, cross_entropy
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from safetensors.numpy import load_file, save_file
    from threadpoolctl import threadpool_limits

    from multihead.plot import attention_maps
except ModuleNotFoundError as why:
    raise SystemExit(f'{why}: pip install "multihead[demo]"') from None

PATCH = 2
GRID = 8 // PATCH
BATCH = 64
PEAK_RATE = 5e-3
SMOOTHING = 0.1
EPOCHS = 60

Report = Callable[[int, float, float], None]


def new_model(seed: int) -> Classifier:
    """Return an untrained classifier for 16 patches of 2 x 2 pixels."""
    return Classifier(GRID * GRID, PATCH * PATCH, seed=seed)


def tokens(images: Array) -> Array:
    """Cut images (N, 8, 8) into patches (N, 16, 4) of about zero mean and unit variance."""
    scaled: Array = (patches(images, PATCH) - np.float32(0.3)) / np.float32(0.4)
    return scaled


def train(split: Split, seed: int, epochs: int, report: Report) -> Classifier:
    """Train a model; `report(epoch, mean loss, held-out accuracy)` is called after each epoch."""
    model = new_model(seed)
    rng = np.random.default_rng([seed, 1])
    adam = Adam(model.parameters())
    batches = len(split.train_labels) // BATCH
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for batch in rng.permutation(len(split.train_labels))[: batches * BATCH].reshape(-1, BATCH):
            scores, _ = model(tokens(jitter(split.train_images[batch], rng)))
            loss, d_scores = cross_entropy(scores, split.train_labels[batch], SMOOTHING)
            model.zero_grad()
            model.backward(d_scores)
            adam.step(model.grads, warmup_cosine(adam.steps, epochs * batches, PEAK_RATE))
            losses.append(loss)
        report(epoch, float(np.mean(losses)), accuracy(model, split))
    return model


def accuracy(model: Classifier, split: Split) -> float:
    """Return the share of the held-out digits that the model names rightly."""
    model.train(False)
    scores, _ = model(tokens(split.test_images))
    return float(np.mean(scores.argmax(axis=1) == split.test_labels))


def draw(model: Classifier, split: Split, path: Path) -> None:
    """Draw where the class token looks, in the last block, for one held-out scan of each digit."""
    model.train(False)
    chosen = [int(np.flatnonzero(split.test_labels == digit)[0]) for digit in range(10)]
    images = split.test_images[chosen]
    scores, maps = model(tokens(images), need_weights=True)
    weights = maps[-1]
    assert weights is not None
    looks = weights[:, :, 0, 1:].reshape(len(images), -1, GRID, GRID)
    titles = [f"read as {digit}" for digit in scores.argmax(axis=1)]
    attention_maps(images, looks, titles=titles).savefig(path, dpi=160)


def main() -> None:
    """Train, draw, save, load and compare."""
    parser = argparse.ArgumentParser(description="Train a small transformer on handwritten digits.")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the model, the batches")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("digits-out"), help="directory to fill")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    split = load_split(options.seed)
    print(f"{len(split.train_labels)} scans to train on, {len(split.test_labels)} held out")
    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    # The products outside attention are too small to gain from the threads of a BLAS.
    bar = Progress(*columns, disable=not sys.stdout.isatty())
    with bar as progress, threadpool_limits(1, user_api="blas"):
        task = progress.add_task("", total=options.epochs)

        def report(epoch: int, loss: float, held_out: float) -> None:
            progress.print(f"epoch {epoch:3}   loss {loss:.4f}   held-out accuracy {held_out:7.2%}")
            progress.advance(task)

        model = train(split, options.seed, options.epochs, report)
    seconds = time.perf_counter() - started
    trained = accuracy(model, split)

    weights, picture = options.out / "weights.safetensors", options.out / "attention.png"
    save_file(model.parameters(), weights)
    fresh = new_model(options.seed + 1)
    fresh.load(load_file(weights))
    draw(fresh, split, picture)
    print(f"test accuracy            {trained:.2%} after {seconds:.1f} s of training")
    print(f"loaded into a new model  {accuracy(fresh, split):.2%} from {weights}")
    print(f"attention maps           {picture}")


if __name__ == "__main__":
    main()
