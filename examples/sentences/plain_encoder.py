"""The same encoder in plain float64 NumPy, a sentence at a time: to read, and to compare with."""

from __future__ import annotations

import math

import numpy as np

from sentences.model_files import Array, ModelFiles

erf = np.vectorize(math.erf, otypes=[np.float64])


def embed(files: ModelFiles, text: str) -> Array:
    """Return the embedding (E,) of a text."""
    weights = {name: x.astype(np.float64) for name, x in files.weights.items()}

    def linear(name: str, x: Array) -> Array:
        y: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return y

    def norm(name: str, x: Array) -> Array:
        mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
        x = (x - mean) / np.sqrt(variance + files.sizes.eps)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name: str, x: Array) -> Array:
        # (H, L, D)
        q, k, v = (
            linear(f"{name}.self.{part}", x).reshape(len(x), files.sizes.heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2]))
        seen = scores / scores.sum(axis=2, keepdims=True) @ v
        return linear(f"{name}.output.dense", seen.swapaxes(0, 1).reshape(x.shape))

    ids = files.tokenizer.encode(text).ids
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
    for i in range(files.sizes.blocks):
        name = f"encoder.layer.{i}"
        x = norm(f"{name}.attention.output.LayerNorm", x + attention(f"{name}.attention", x))
        hidden = linear(f"{name}.intermediate.dense", x)
        hidden = hidden / 2 * (1 + erf(hidden / math.sqrt(2)))
        x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", hidden))
    mean = x.mean(axis=0)
    unit: Array = mean / np.linalg.norm(mean)
    return unit
