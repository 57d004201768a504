"""Search by meaning: the nearest embeddings are the best answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentences.encoder import Encoder


@dataclass(frozen=True)
class Hit:
    """An answer, and the cosine of the angle between it and the query."""

    cosine: float
    name: str
    text: str


class Index:
    """Named sentences and their embeddings."""

    def __init__(self, encoder: Encoder, named: Sequence[tuple[str, str]]) -> None:
        self.encoder, self.named = encoder, named
        self.embeddings = encoder([text for _, text in named])

    def search(self, query: str, top: int) -> list[Hit]:
        """Return the nearest sentences, the nearest first."""
        cosines = self.embeddings @ self.encoder([query])[0]
        best = np.argsort(-cosines, kind="stable")[:top]
        return [Hit(float(cosines[i]), *self.named[i]) for i in best]
