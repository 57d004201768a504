"""Sentences of Python's documentation, and the module that each speaks of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentences.documentation import entries
from sentences.model_files import Array

MODULES = (
    "decimal difflib email.message imaplib inspect logging mailbox pathlib pdb shutil smtplib "
    "socket statistics tarfile threading unittest"
).split()
MOST = 90  # sentences of a module
HELD_OUT = 0.3  # of the documents
VALIDATED = 0.15


@dataclass(frozen=True)
class Sentences:
    """N sentences, their modules, and the documents that they are from."""

    texts: list[str]
    labels: Array  # (N,), of MODULES
    documents: Array  # (N,): what is said of one function, class or method

    def __getitem__(self, chosen: Array) -> Sentences:
        """Return those at some places."""
        texts = [self.texts[i] for i in chosen]
        return Sentences(texts, self.labels[chosen], self.documents[chosen])


def load(modules: Sequence[str] = MODULES, most: int = MOST) -> Sentences:
    """Collect the sentences, without those that more than one document has."""
    found = [
        (text, label, f"{module} {entry.name}")
        for label, module in enumerate(modules)
        for entry in entries([module])
        for text in entry.sentences()
    ]
    times, taken = Counter(text for text, _, _ in found), Counter[int]()
    kept = []
    for text, label, document in found:
        if times[text] == 1 and taken[label] < most:
            taken[label] += 1
            kept.append((text, label, document))
    texts, labels, names = zip(*kept, strict=True)
    return Sentences(list(texts), np.array(labels), np.unique(names, return_inverse=True)[1])


def split(documents: Array, seed: int) -> tuple[Array, Array, Array]:
    """Return where to learn, where to validate and where to test: no document is in two of them."""
    order = np.random.default_rng(seed).permutation(int(documents.max()) + 1)
    share = np.empty(len(order))
    share[order] = np.arange(len(order)) / len(order)
    at = share[documents]
    tested, validated = at < HELD_OUT, at >= 1 - VALIDATED
    learned = ~(tested | validated)
    return np.flatnonzero(learned), np.flatnonzero(validated), np.flatnonzero(tested)
