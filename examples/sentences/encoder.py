"""The encoder for speed: ragged batches, large products, no temporaries of their size.

A block, as in BERT (Devlin et al., 2019): x = norm(x + attention(x)), x = norm(x + mlp(x)).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import ThreadpoolController

import multihead as mh
from sentences.gelu import one_plus_erf
from sentences.model_files import Array, ModelFiles, Sizes

TOKENS = 1024  # of a batch, about: enough for a product at full speed
ROWS = 256  # of the hidden layer at a time: they stay in the cache
GELU_ROWS = 32


@dataclass
class Norm:
    """Layer norm, in place."""

    scale: Array
    shift: Array
    eps: float

    def __call__(self, x: Array) -> None:
        """Normalise the rows of x (total, E)."""
        width = x.shape[1]
        x -= (x @ np.full(width, 1 / width, x.dtype))[:, None]
        x *= (1 / np.sqrt(np.vecdot(x, x) / width + self.eps))[:, None]
        x *= self.scale
        x += self.shift


class Block:
    """Attention, then two products with GELU between them."""

    def __init__(self, weights: dict[str, Array], name: str, sizes: Sizes) -> None:
        def get(part: str) -> Array:
            return weights[f"encoder.layer.{name}.{part}"]

        parts = [f"attention.self.{x}" for x in ("query", "key", "value")]
        self.attention = mh.MultiheadAttention(sizes.width, sizes.heads).eval()
        self.attention.load_state_dict(
            {
                "in_proj_weight": np.concatenate([get(f"{x}.weight") for x in parts]),
                "in_proj_bias": np.concatenate([get(f"{x}.bias") for x in parts]),
                "out_proj.weight": get("attention.output.dense.weight"),
                "out_proj.bias": get("attention.output.dense.bias"),
            }
        )
        norms = ("attention.output.LayerNorm", "output.LayerNorm")
        self.norm1, self.norm2 = (
            Norm(get(f"{x}.weight"), get(f"{x}.bias"), sizes.eps) for x in norms
        )
        self.up = np.ascontiguousarray(get("intermediate.dense.weight").T)
        self.up_bias = get("intermediate.dense.bias")
        self.down = np.ascontiguousarray(get("output.dense.weight").T) / 2  # GELU's half
        self.down_bias = get("output.dense.bias")

    def __call__(self, batch: mh.Ragged[Array], scratch: Scratch) -> mh.Ragged[Array]:
        """Return the batch after this block, in memory of its own."""
        out, _ = self.attention(batch, batch, batch, need_weights=False)
        x = out.values
        x += batch.values
        self.norm1(x)
        for first in range(0, len(x), ROWS):
            rows = x[first : first + ROWS]
            self.mlp(rows, scratch)
        self.norm2(x)
        return out

    def mlp(self, x: Array, scratch: Scratch) -> None:
        """Add to x what the hidden layer says."""
        hidden = np.matmul(x, self.up, out=scratch.hidden[: len(x)])
        for first in range(0, len(x), GELU_ROWS):
            part = hidden[first : first + GELU_ROWS]
            part += self.up_bias
            part *= one_plus_erf(part, scratch.square[: len(part)], scratch.gate[: len(part)])
        x += np.matmul(hidden, self.down, out=scratch.out[: len(x)])
        x += self.down_bias


class Scratch:
    """Memory of one thread."""

    def __init__(self, width: int, hidden: int) -> None:
        self.hidden = np.empty((ROWS, hidden), np.float32)
        self.out = np.empty((ROWS, width), np.float32)
        self.square, self.gate = np.empty((2, GELU_ROWS, hidden), np.float32)


class Encoder:
    """Sentences to embeddings of length 1, so that a product of two is their cosine.

    Batches are divided among threads, each of which computes on its own.
    """

    def __init__(self, files: ModelFiles, threads: int | None = None) -> None:
        weights, self.sizes, self.tokenizer = files.weights, files.sizes, files.tokenizer
        self.words = weights["embeddings.word_embeddings.weight"]
        # all tokens are of one kind: its vector joins the positions'
        kind = weights["embeddings.token_type_embeddings.weight"][0]
        self.places = weights["embeddings.position_embeddings.weight"] + kind
        norm = "embeddings.LayerNorm"
        self.norm = Norm(weights[f"{norm}.weight"], weights[f"{norm}.bias"], self.sizes.eps)
        self.blocks = [Block(weights, str(i), self.sizes) for i in range(self.sizes.blocks)]
        self.threads = threads or len(os.sched_getaffinity(0))
        mh.register_threadpoolctl()
        self._pools = ThreadpoolController()

    def __call__(self, texts: Sequence[str]) -> Array:
        """Return the embeddings (N, E) of N texts."""
        tokens = [x.ids for x in self.tokenizer.encode_batch_fast(list(texts))]
        runs = list(batches(tokens, TOKENS))
        with self._pools.limit(limits=1):
            if len(runs) < 2 or self.threads == 1:
                parts = [self.encode(run) for run in runs]
            else:
                with ThreadPoolExecutor(self.threads) as workers:
                    parts = list(workers.map(self.encode, runs))
        empty = np.empty((0, self.sizes.width), np.float32)
        return np.concatenate([empty, *parts])

    def encode(self, tokens: list[list[int]]) -> Array:
        """Return the embeddings (N, E) of N texts as tokens, in this thread."""
        batch = self.hidden(tokens, len(self.blocks))
        sums = np.add.reduceat(batch.values, batch.offsets[:-1], axis=0)
        sums /= np.sqrt(np.vecdot(sums, sums))[:, None]  # a mean has the direction of its sum
        return sums

    def hidden(self, tokens: list[list[int]], blocks: int) -> mh.Ragged[Array]:
        """Return what the first blocks make of N texts, a vector (E,) for each token."""
        lengths = [len(x) for x in tokens]
        x = self.words[np.concatenate(tokens)]
        x += self.places[np.concatenate([np.arange(n) for n in lengths])]
        self.norm(x)
        batch = mh.Ragged(x, np.cumsum([0, *lengths]))
        scratch = Scratch(self.sizes.width, self.blocks[0].up.shape[1])
        for block in self.blocks[:blocks]:
            batch = block(batch, scratch)
        return batch


def batches(tokens: list[list[int]], about: int) -> Iterator[list[list[int]]]:
    """Yield runs of texts that have about so many tokens together."""
    run: list[list[int]] = []
    total = 0
    for text in tokens:
        if run and total + len(text) > about:
            yield run
            run, total = [], 0
        run.append(text)
        total += len(text)
    if run:
        yield run
