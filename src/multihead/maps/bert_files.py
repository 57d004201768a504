"""The files of a BERT encoder: found, checked before they are believed, and read."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multihead.arrays import Array
from multihead.checks import integer, number, wrong

FILES = ("config.json", "model.safetensors", "tokenizer.json")
_OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}  # of norms, in older checkpoints
_EXTRA = 'reading a model needs safetensors and tokenizers: pip install "multihead[maps]"'


class Config(NamedTuple):
    """What `config.json` says of an encoder."""

    width: int
    heads: int
    layers: int
    inner: int
    positions: int
    epsilon: float
    activation: str


def find(model: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: itself, or the one in an installed package of that name."""
    folder, name = Path(model), os.fspath(model).replace("-", "_")
    if folder.is_dir():
        missing = [file for file in FILES if not (folder / file).is_file()]
        if missing:
            message = f"model: {folder} lacks {', '.join(missing)}; expected {', '.join(FILES)}"
            raise FileNotFoundError(message)
        return folder
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None:
        expected = "expected a folder, or the name of an installed package"
        raise FileNotFoundError(f"model: {expected}, got {os.fspath(model)!r}, which is neither")
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    found = [
        file.parent
        for place in places
        for file in sorted(place.rglob(FILES[1]))
        if all((file.parent / other).is_file() for other in FILES)
    ]
    if len(found) != 1:
        got = "none" if not found else ", ".join(map(str, found))
        raise FileNotFoundError(f"model: expected one folder with a model in {name}, got {got}")
    return found[0]


def read_config(path: Path) -> Config:
    """Read `config.json`."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise wrong(str(path), "JSON", type(error).__name__) from None
    if not isinstance(held, dict) or held.get("model_type") != "bert":
        got = held.get("model_type") if isinstance(held, dict) else type(held).__name__
        raise wrong(f"{path}: model_type", "'bert'", repr(got))
    kind = held.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise wrong(f"{path}: position_embedding_type", "'absolute'", repr(kind))
    names = {
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "layers": "num_hidden_layers",
        "inner": "intermediate_size",
        "positions": "max_position_embeddings",
    }
    sizes = {ours: integer(f"{path}: {name}", held.get(name), 1) for ours, name in names.items()}
    epsilon = number(f"{path}: layer_norm_eps", held.get("layer_norm_eps", 1e-12))
    return Config(**sizes, epsilon=epsilon, activation=str(held.get("hidden_act", "gelu")))


def read_tokenizer(path: Path) -> Any:
    """Read `tokenizer.json`; texts are neither padded nor cut."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(_EXTRA) from error
    content = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise wrong(str(path), "a tokenizer", f"{type(error).__name__}: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_tensors(path: Path) -> dict[str, Array]:
    """Read the floating tensors by the names that BERT's modules have, as float32."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(_EXTRA) from error
    found: dict[str, Array] = {}
    try:
        with safe_open(path, framework="numpy") as opened:
            for name in opened.keys():
                dtype = opened.get_slice(name).get_dtype()
                if dtype == "BF16":  # NumPy has none
                    raise wrong(f"{path}: {name}", "F32 or F16", f"{dtype}; convert the file")
                if dtype.startswith("F"):
                    found[_plain(name)] = opened.get_tensor(name).astype(np.float32)
    except SafetensorError as error:
        raise wrong(str(path), "a safetensors file", error) from None
    return found


def _plain(name: str) -> str:
    name = name.removeprefix("bert.")
    for old, new in _OLD_ENDINGS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
