"""Write every hostile file of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

HERE = Path(__file__).parent
OPTIONS: dict[str, Any] = {
    "embed_dim": 4,
    "num_heads": 2,
    "dropout": 0.0,
    "bias": False,
    "add_bias_kv": False,
    "add_zero_attn": False,
    "kdim": 4,
    "vdim": 4,
    "batch_first": False,
    "dtype": "float32",
}
SIZES = {"in_proj_weight": (12, 4), "out_proj.weight": (4, 4)}
NAMES = {"float32": "F32", "int64": "I64", "uint16": "U16", "complex64": "C64", "bool": "BOOL"}


def file(name: str, note: Any = None, dtype: str = "float32", **arrays: np.ndarray | None) -> None:
    """Write a file with the tensors of a layer, or others, and a note as the metadata."""
    full = {"options": OPTIONS, "rng_state": [1, 2]}
    text = note if isinstance(note, str) else json.dumps(full | (note or {}))
    tensors = {key: np.ones(size, dtype) for key, size in SIZES.items()} | arrays
    header: dict[str, Any] = {"__metadata__": {"multihead": text}}
    data = b""
    for key, array in tensors.items():
        if array is not None:
            span = [len(data), len(data) + array.nbytes]
            kind = NAMES[array.dtype.name]
            header[key] = {"dtype": kind, "shape": array.shape, "data_offsets": span}
            data += array.tobytes()
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    (HERE / f"{name}.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def options(**change: Any) -> dict[str, Any]:
    """Return a note with other options."""
    return {"options": OPTIONS | change}


def main() -> None:
    """Write them all."""
    for name, data in {
        "empty": b"",
        "text": b"not a checkpoint",
        "header_longer_than_the_file": (2**40).to_bytes(8, "little") + b"{}",
        "header_deeply_nested": (40000).to_bytes(8, "little") + b"[" * 40000,
    }.items():
        (HERE / f"{name}.safetensors").write_bytes(data)
    safetensors.numpy.save_file({"x": np.ones(1)}, HERE / "no_metadata.safetensors")
    file("note_deeply_nested", "[" * 40000)
    file("note_no_json", "{")
    file("note_a_number", "3")
    file("note_a_list", "[]")
    file("no_options", '{"rng_state": [0, 0]}')
    file("options_a_list", {"options": [1]})
    file("options_unknown", options(colour="red"))
    file("options_a_seed", options(seed=3))
    file("options_heads_zero", options(num_heads=0))
    file("options_heads_do_not_divide", options(num_heads=3))
    file("options_size_a_float", options(embed_dim=4.0))
    file("options_size_huge", options(embed_dim=10**9))
    file("options_kdim_huge", options(kdim=10**9))
    file("options_size_beyond_words", options(embed_dim=10**40))
    file("options_dtype_unknown", options(dtype="float8"))
    file("options_grad_dtype_of_another_layer", options(grad_dtype="bfloat16"))
    file("options_flag_a_word", options(bias="no"))
    file("options_dropout_nan", options(dropout=float("nan")))
    file("random_state_short", {"rng_state": [1]})
    file("random_state_negative", {"rng_state": [-1, 0]})
    file("random_state_beyond_words", {"rng_state": [0, 2**64]})
    for dtype in ("int64", "uint16", "complex64", "bool"):
        file(f"tensors_{dtype}", dtype=dtype)
    file("tensors_float32_for_bfloat16", options(dtype="bfloat16"))
    file("tensor_missing", **{"out_proj.weight": None})
    file("tensor_unexpected", extra=np.ones(1, np.float32))
    file("tensor_of_another_shape", **{"out_proj.weight": np.ones((4, 3), np.float32)})
    file("tensor_of_another_rank", **{"out_proj.weight": np.ones(16, np.float32)})


if __name__ == "__main__":
    main()
