"""A BERT encoder in NumPy, run for its attention weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from multihead.arrays import Array
from multihead.checks import wrong
from multihead.layer import MultiheadAttention
from multihead.maps.bert_files import FILES, find, read_config, read_tensors, read_tokenizer

_erf = np.frompyfunc(math.erf, 1, 1)


def _gelu(x: Array) -> Array:
    y: Array = 0.5 * x * (1 + _erf(x * np.float32(math.sqrt(0.5))).astype(np.float32))
    return y


def _gelu_tanh(x: Array) -> Array:
    y: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
}


class _Linear(NamedTuple):
    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        y: Array = x @ self.weight.T + self.bias
        return y


class _Norm(NamedTuple):
    weight: Array
    bias: Array
    epsilon: float

    def __call__(self, x: Array) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(x).mean(axis=-1, keepdims=True)
        y: Array = x / np.sqrt(variance + np.float32(self.epsilon)) * self.weight + self.bias
        return y


class _Block(NamedTuple):
    attention: MultiheadAttention
    attended: _Norm
    first: _Linear
    second: _Linear
    last: _Norm


class BertEncoder:
    """A BERT encoder from Hugging Face's files, which returns what its heads attend to.

    Attention is `MultiheadAttention`'s, all else NumPy's, in float32. Nothing is downloaded.

    Parameters
    ----------
    model : path-like
        A folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, or the name of
        an installed package that has one such folder.

    Attributes
    ----------
    limit : int
        How many tokens a text may have.

    Raises
    ------
    ImportError
        If safetensors or tokenizers is not installed (``pip install "multihead[maps]"``).
    OSError
        If there is no such folder or package, or a file is missing or cannot be read.
    TypeError, ValueError
        If the files are not those of a BERT encoder.

    Examples
    --------
    >>> from multihead.maps import BertEncoder
    >>> BertEncoder("no/model")
    Traceback (most recent call last):
        ...
    FileNotFoundError: model: expected a folder, or the name of an installed package, \
got 'no/model', which is neither
    """

    def __init__(self, model: str | os.PathLike[str]) -> None:
        folder = find(model)
        config_file, tensors_file, tokenizer_file = (folder / name for name in FILES)
        self._config = config = read_config(config_file)
        if config.activation not in _ACTIVATIONS:
            expected = "one of " + ", ".join(_ACTIVATIONS)
            raise wrong(f"{config_file}: hidden_act", expected, repr(config.activation))
        self._tokenizer = read_tokenizer(tokenizer_file)
        self._tensors, self._file = read_tensors(tensors_file), tensors_file
        self.limit: int = config.positions
        width = config.width
        self._words = self._tensor("embeddings.word_embeddings.weight", None, width)
        self._places = self._tensor("embeddings.position_embeddings.weight", self.limit, width)
        parts = self._tensor("embeddings.token_type_embeddings.weight", None, width)
        self._places = self._places + parts[0]  # one text is one part
        self._norm = self._new_norm("embeddings.LayerNorm")
        self._blocks = [self._block(f"encoder.layer.{n}") for n in range(config.layers)]
        self._tensors = {}

    def __call__(self, text: str) -> tuple[list[str], Array]:
        """Run the encoder on a text.

        Parameters
        ----------
        text : str

        Returns
        -------
        tokens : list of L str
            With those that the tokenizer adds, such as ``[CLS]``.
        weights : ndarray, (layers, H, L, L), float32
            Where each token looks, in every layer and head.

        Raises
        ------
        ValueError
            If the text has more tokens than the model has positions, or none.
        """
        encoding = self._tokenizer.encode(text)
        ids = encoding.ids
        if not 0 < len(ids) <= self.limit:
            raise wrong("text", f"1 to {self.limit} tokens, the model's positions", len(ids))
        if max(ids) >= len(self._words):
            raise wrong("text", f"tokens below {len(self._words)}, the model's words", max(ids))
        x = self._norm(self._words[ids] + self._places[: len(ids)])
        activation = _ACTIVATIONS[self._config.activation]
        found = []
        for block in self._blocks:
            mixed, weights = block.attention(x, x, x, average_attn_weights=False)
            found.append(weights)
            x = block.attended(x + mixed)
            x = block.last(x + block.second(activation(block.first(x))))
        return list(encoding.tokens), np.stack(found)

    def _block(self, place: str) -> _Block:
        config = self._config
        attention = MultiheadAttention(config.width, config.heads, seed=0).eval()
        parts = ("self.query", "self.key", "self.value", "output.dense")
        *three, out = (self._new_linear(f"{place}.attention.{part}") for part in parts)
        attention.load_state_dict(
            {
                "in_proj_weight": np.concatenate([x.weight for x in three]),
                "in_proj_bias": np.concatenate([x.bias for x in three]),
                "out_proj.weight": out.weight,
                "out_proj.bias": out.bias,
            }
        )
        return _Block(
            attention,
            self._new_norm(f"{place}.attention.output.LayerNorm"),
            self._new_linear(f"{place}.intermediate.dense", outputs=config.inner),
            self._new_linear(f"{place}.output.dense", inputs=config.inner),
            self._new_norm(f"{place}.output.LayerNorm"),
        )

    def _new_linear(
        self, name: str, outputs: int | None = None, inputs: int | None = None
    ) -> _Linear:
        outputs, inputs = outputs or self._config.width, inputs or self._config.width
        weight = self._tensor(f"{name}.weight", outputs, inputs)
        return _Linear(weight, self._tensor(f"{name}.bias", outputs))

    def _new_norm(self, name: str) -> _Norm:
        width, epsilon = self._config.width, self._config.epsilon
        weight, bias = (self._tensor(f"{name}.{part}", width) for part in ("weight", "bias"))
        return _Norm(weight, bias, epsilon)

    def _tensor(self, name: str, *shape: int | None) -> Array:
        """Take a tensor of this shape, in which None is any size but 0, from the file's."""
        found = self._tensors.get(name)
        if found is None:
            raise wrong(str(self._file), f"a tensor {name} of floats", "none of that name")
        fits = found.ndim == len(shape) and found.size > 0
        if not fits or any(s not in (None, g) for s, g in zip(shape, found.shape, strict=True)):
            expected = f"({', '.join('any' if s is None else str(s) for s in shape)})"
            raise wrong(f"{self._file}: {name}", expected, found.shape)
        return found
