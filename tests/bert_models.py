"""Small BERT encoders of random weights in folders, as Hugging Face's libraries write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "river", "bank", "was", "closed", ".", "##s"]
CONFIG = {
    "model_type": "bert",
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "vocab_size": len(WORDS),
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}


def tensors(seed: int = 0, **options: Any) -> dict[str, np.ndarray]:
    """Random tensors under the names of BERT's modules."""
    config = CONFIG | options
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (int(config["vocab_size"]), width),
        "embeddings.position_embeddings.weight": (int(config["max_position_embeddings"]), width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms, linears = ["embeddings.LayerNorm"], {}
    for n in range(int(config["num_hidden_layers"])):
        place = f"encoder.layer.{n}"
        norms += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{place}.attention.{part}"] = (width, width)
        linears[f"{place}.intermediate.dense"] = (inner, width)
        linears[f"{place}.output.dense"] = (width, inner)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, held: dict[str, np.ndarray] | None = None, **options: Any) -> Path:
    """Write a model's three files."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = {word: n for n, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=12)  # as published tokenizers do, and as nobody wants here
    tokenizer.enable_truncation(6)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG | options))
    save_file(tensors(**options) if held is None else held, folder / "model.safetensors")
    return folder
