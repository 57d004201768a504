"""Fine-tune the trained model to tell which module a sentence speaks of.

python examples/finetune.py --seeds 4 --epochs 4
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

import multihead as mh
from finetuning.block import Block
from finetuning.classifier import Classifier
from finetuning.data import MODULES, Sentences, load, split
from finetuning.training import Places, Plan, Score, fine_tune, train_head
from sentences.encoder import Encoder, batches
from sentences.model_files import Array, ModelFiles
from sentences.processor import cpu

LEARNING = 2  # blocks
DROPOUT = 0.1


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Fine-tune a sentence model to tell modules.")
    parser.add_argument("--seeds", type=int, default=4, help="of splits and of training")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--sentences", type=int, help="take so many at random, to see it run")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="another model's files")
    options = parser.parse_args()
    for name in ("seeds", "epochs", "sentences"):
        given = getattr(options, name)
        if given is not None and given < 1:
            parser.error(f"--{name}: expected at least 1, got {given}")
    return options


class Experiment:
    """Data that all seeds share: what the frozen blocks make of every sentence."""

    def __init__(self, files: ModelFiles, data: Sentences, epochs: int) -> None:
        encoder = Encoder(files)
        self.files, self.data, self.epochs = files, data, epochs
        self.frozen = encoder.sizes.blocks - LEARNING
        ids = [x.ids for x in files.tokenizer.encode_batch_fast(data.texts)]
        self.tokens: list[Array] = []
        sums = []
        for run in batches(ids, 1024):
            self.tokens += encoder.hidden(run, self.frozen)
            sums.append(encoder.encode(run))
        self.embeddings = np.concatenate(sums) * np.sqrt(np.float32(encoder.sizes.width))

    def run(self, seed: int) -> tuple[Score, Score]:
        """Return the test's scores of a head on the frozen model, and after fine-tuning."""
        labels = self.data.labels
        places = Places(*split(self.data.documents, seed))
        head = train_head(self.embeddings, labels, places, len(MODULES))
        before = Score.of(head(self.embeddings[places.tested]), labels[places.tested])
        blocks = [
            Block(self.files.weights, str(i), self.files.sizes, DROPOUT, seed)
            for i in range(self.frozen, self.files.sizes.blocks)
        ]

        def say(epoch: int, loss: float, validation: Score) -> None:
            print(
                f"seed {seed}   epoch {epoch}   loss {loss:.3f}   "
                f"validation {validation.loss:.3f}, {validation.accuracy:.1%}\n",
                end="",  # a line at once: seeds run in threads
                flush=True,
            )

        model = Classifier(blocks, head)
        after = fine_tune(model, (self.tokens, labels), places, Plan(self.epochs, seed), say)
        return before, after


def report(results: Sequence[tuple[Score, Score]]) -> None:
    """Print the test's accuracies, seed by seed, their means and standard deviations."""
    found = np.array([[before.accuracy, after.accuracy] for before, after in results])
    table = np.column_stack([found, found[:, 1] - found[:, 0]]) * 100
    print("\nheld-out accuracy, %   head alone   fine-tuned   gain")
    rows = [(f"seed {seed}", row) for seed, row in enumerate(table)]
    rows.append(("mean", table.mean(axis=0)))
    if len(table) > 1:
        rows.append(("standard deviation", table.std(axis=0, ddof=1)))
    for name, (before, after, gain) in rows:
        print(f"{name:<20}   {before:10.1f}   {after:10.1f}   {gain:4.1f}")


def main() -> None:
    """Do what the command line says."""
    options = parse()
    started = time.perf_counter()
    try:
        files = ModelFiles.load(options.model)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    data = load()
    if options.sentences is not None:
        data = data[np.random.default_rng(0).permutation(len(data.texts))[: options.sentences]]
    documents = len(np.unique(data.documents))
    print(f"{len(data.texts)} sentences of {documents} documents, {len(MODULES)} modules")
    mh.register_threadpoolctl()
    threads = len(os.sched_getaffinity(0))
    # a seed for each core, each in one thread: none waits for another
    with ThreadpoolController().limit(limits=1), ThreadPoolExecutor(threads) as workers:
        experiment = Experiment(files, data, options.epochs)
        report(list(workers.map(experiment.run, range(options.seeds))))
    print(f"{time.perf_counter() - started:.0f} s, {threads} threads, {cpu()}")
