"""How many sentences a second, beside sentence-transformers on the same texts and threads."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np

import multihead as mh
from sentences.documentation import entries
from sentences.encoder import Encoder
from sentences.model_files import Array, ModelFiles
from sentences.processor import cpu

LENGTHS = (8, 16, 32, 64, 128, 256, 512)  # tokens
TOKENS = 4096  # of the texts of one length
ROUNDS = 5
MIXED = 256  # texts, of up to the tokens that the model is meant for

Encode = Callable[[list[str]], Array]


def torch_encoders(files: ModelFiles, threads: int) -> dict[str, Encode]:
    """Load the same files in sentence-transformers, with its attention and with ours."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SystemExit(
            f"{error}: the measurement needs PyTorch and transformers, and "
            "pip install --no-deps sentence-transformers"
        ) from None
    from multihead.torch import register_transformers

    register_transformers()
    torch.set_num_threads(threads)
    mh.set_num_threads(threads)

    def load(attention: str) -> Encode:
        kwargs = {"attn_implementation": attention}
        model: Any = SentenceTransformer(str(files.folder), device="cpu", model_kwargs=kwargs)
        model.max_seq_length = max(LENGTHS)
        return lambda texts: model.encode(texts, show_progress_bar=False)

    return {"sentence-transformers": load("sdpa"), "with multihead": load("multihead")}


def texts_of(files: ModelFiles, lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Cut a text for each length, of about so many tokens, from Python's documentation."""
    prose = " ".join(entry.text for entry in entries())
    files.tokenizer.no_truncation()
    whole = files.tokenizer.encode(prose, add_special_tokens=False)
    starts = [
        a for (a, _), token in zip(whole.offsets, whole.tokens, strict=True) if token[0] != "#"
    ]
    rng = np.random.default_rng(seed)
    places = rng.integers(0, len(starts) - max(lengths), len(lengths))
    tokens_of_word = len(whole.ids) / len(starts)
    found = []
    for first, length in zip(places, lengths, strict=True):
        words = max(1, round((length - 2) / tokens_of_word))
        found.append(prose[starts[first] : starts[first + words]].strip())
    files.tokenizer.enable_truncation(max(LENGTHS))
    return found


def measured(encoders: dict[str, Encode], texts: list[str]) -> dict[str, float]:
    """Return how many texts a second each takes: medians, the encoders in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():
        encode(texts)
    for _ in range(ROUNDS):
        for name, encode in encoders.items():
            started = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - started)
    return {name: len(texts) / statistics.median(of) for name, of in seconds.items()}


def cases(longest: int, rng: np.random.Generator) -> dict[str, list[int]]:
    """Return the lengths of the texts of each case; mixed ones are even on a log scale."""
    found = {str(n): [n] * (TOKENS // n) for n in LENGTHS}
    mixed = np.exp(rng.uniform(np.log(LENGTHS[0]), np.log(longest), MIXED)).astype(int)
    return found | {"mixed": mixed.tolist()}


def measure(files: ModelFiles, encoder: Encoder) -> None:
    """Print a table of sentences a second and of ratios."""
    encoders = {"multihead": encoder, **torch_encoders(files, encoder.threads)}
    packages = ("torch", "transformers", "sentence-transformers", "numpy")
    print(f"{cpu()}, {encoder.threads} threads each")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print("\nsentences a second, medians; in brackets, times sentence-transformers")
    print("tokens    texts   sentence-transformers   with multihead   this example")
    for name, lengths in cases(files.sizes.longest, np.random.default_rng(0)).items():
        texts = texts_of(files, lengths)
        ours, theirs, under = (f for f in measured(encoders, texts).values())
        print(
            f"{name:<6}   {len(texts):6}   {theirs:21.0f}   {under:7.0f} ({under / theirs:4.2f})"
            f"   {ours:7.0f} ({ours / theirs:4.2f})",
            flush=True,
        )
        assert_same(encoders, texts[:8])


def assert_same(encoders: dict[str, Encode], texts: list[str]) -> None:
    """Fail if the encoders do not agree."""
    found = [encode(texts) for encode in encoders.values()]
    for a, b in pairwise(found):
        if np.abs(a - b).max() > 1e-5:
            sys.exit(f"the embeddings differ by {np.abs(a - b).max():.1e}")
