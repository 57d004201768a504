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
NAMES |= {"float16": "F16", "int32": "I32", "uint64": "U64"}
CACHE: dict[str, Any] = {
    "batch": 2,
    "num_kv_heads": 1,
    "capacity": 8,
    "head_dim": 4,
    "value_dim": 4,
    "dtype": "float32",
    "window": None,
}
OUT = '"out_proj.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [192, 256]}'


def packed(header: bytes, data: bytes) -> bytes:
    """Return a file of a header and data."""
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def contents(key: str, text: str, tensors: dict[str, np.ndarray | None]) -> tuple[str, bytes]:
    """Return the header and the data of a file with some tensors, and a text in its metadata."""
    header: dict[str, Any] = {"__metadata__": {key: text}}
    data = b""
    for name, array in tensors.items():
        if array is not None:
            span = [len(data), len(data) + array.nbytes]
            kind = NAMES[array.dtype.name]
            header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": span}
            data += array.tobytes()
    return json.dumps(header), data


def layer(
    note: Any = None, dtype: str = "float32", **arrays: np.ndarray | None
) -> tuple[str, bytes]:
    """Return the header and the data of a layer's file, or of one with other tensors."""
    full = {"options": OPTIONS, "rng_state": [1, 2]}
    text = note if isinstance(note, str) else json.dumps(full | (note or {}))
    return contents("multihead", text, {x: np.ones(n, dtype) for x, n in SIZES.items()} | arrays)


def file(name: str, note: Any = None, dtype: str = "float32", **arrays: np.ndarray | None) -> None:
    """Write a file with the tensors of a layer, or others, and a note as the metadata."""
    header, data = layer(note, dtype, **arrays)
    (HERE / f"{name}.safetensors").write_bytes(packed(header.encode(), data))


def changed(name: str, old: str, new: str, data: bytes = b"") -> None:
    """Write a layer's file with other words in its header, and more data."""
    header, own = layer()
    assert header.count(old) == 1, (old, header)
    words = header.replace(old, new).encode("utf-8", "surrogateescape")
    (HERE / f"{name}.safetensors").write_bytes(packed(words, own + data))


def cache(name: str, note: Any = None, **arrays: np.ndarray | None) -> None:
    """Write a file with a cache of keys and values."""
    full: dict[str, Any] = CACHE | (note or {})
    text = json.dumps({x: y for x, y in full.items() if y != "absent"})
    ones = np.ones((2, 1, 3, 4), np.float32)
    tokens = np.array([3, 2])
    tensors = {"keys": ones, "values": ones, "lengths": tokens, "rows": tokens} | arrays
    header, data = contents("multihead.kv_cache", text, tensors)
    (HERE / "caches" / f"{name}.safetensors").write_bytes(packed(header.encode(), data))


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
    headers()
    caches()


def headers() -> None:
    """Write those whose header lies."""
    (HERE / "truncated_header.safetensors").write_bytes(packed(layer()[0].encode(), b"")[:200])
    (HERE / "truncated_length.safetensors").write_bytes(b"\x10\0\0")
    (HERE / "truncated_data.safetensors").write_bytes(packed(layer()[0].encode(), layer()[1][:-1]))
    (HERE / "header_length_of_all_bits.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    (HERE / "header_a_list.safetensors").write_bytes(packed(b"[1, 2]", b""))
    changed("data_behind_the_tensors", OUT, OUT, b"more")
    changed("tensor_twice", OUT, f"{OUT}, {OUT}")
    changed("metadata_twice", OUT, f'{OUT}, "__metadata__": {{}}')
    changed("metadata_a_number", OUT, f'{OUT}, "x": 3')
    for name, offsets in {
        "overlap": "[128, 192]",
        "leave_a_hole": "[193, 257]",
        "negative": "[-64, 0]",
        "beyond_the_file": "[192, 100000]",
        "reversed": "[256, 192]",
        "a_float": "[192.0, 256]",
        "nan": "[NaN, 256]",
        "beyond_words": "[192, 36893488147419103232]",
        "short": "[192]",
    }.items():
        changed(f"offsets_{name}", OUT, OUT.replace("[192, 256]", offsets))
    for name, shape in {
        "overflows": "[4611686018427387904, 4]",
        "of_all_bits": "[18446744073709551615, 2]",
        "negative": "[-4, -4]",
        "nested": "[[4], 4]",
    }.items():
        changed(f"shape_{name}", OUT, OUT.replace("[4, 4]", shape))
    sizes = {"F8_E4M3": "4, 16", "F8_E5M2": "4, 16", "F4": "8, 16", "BF16": "4, 8", "U64": "4, 2"}
    for name, size in {**sizes, "F3": "4, 4"}.items():
        changed(f"dtype_{name}", OUT, OUT.replace("F32", name).replace("4, 4", size))
    changed("name_not_utf8", "out_proj.weight", "out_\udcff\udcfe.weight")
    changed("name_half_a_surrogate", "out_proj.weight", "out_\\ud800")
    changed("name_with_a_zero", "out_proj.weight", "out_proj\\u0000.weight")
    text = json.dumps({"options": OPTIONS, "rng_state": [1, 2]})
    file("note_twice_an_option", text.replace('"dropout": 0.0', '"dropout": 0.0, "dropout": 0.5'))
    file("note_twice_options", text[:-1] + f', "options": {json.dumps(OPTIONS)}}}')
    file("note_of_more", {"more": 1})
    file("note_beyond_floats", text.replace('"dropout": 0.0', '"softcap": 1e999'))
    file("note_of_many_digits", text.replace("[1, 2]", "[" + "9" * 5000 + ", 2]"))
    file("note_half_a_surrogate", options(**{"\ud800\x1b[2J": 1}))
    for name, value in {
        "a_number": 3,
        "a_word": "x",
        "unknown": {"colour": 1},
        "no": False,
    }.items():
        file(f"options_rope_{name}", options(rope=value))
    for name, scaling in {
        "unknown": {"rope_type": "x"},
        "a_list": {"rope_type": ["x"]},
        "by_zero": {"rope_type": "linear", "factor": 0},
        "by_less": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": -3},
        "beyond_floats": {"rope_type": "linear", "factor": 1e-300},
    }.items():
        file(f"options_rope_scaling_{name}", options(rope={"scaling": scaling}))
    file("options_window_words", options(window="ab"))
    file("options_window_of_three", options(window=[1, 2, 3]))
    file("options_dtype_a_structure", options(dtype={"names": ["a"], "formats": ["f4"]}))
    file("random_state_a_word", {"rng_state": "ab"})


def caches() -> None:
    """Write those that are no caches."""
    (HERE / "caches").mkdir(exist_ok=True)
    ones = np.ones((2, 1, 3, 4), np.float32)
    cache("batch_another", {"batch": 3})
    cache("batch_negative", {"batch": -2})
    cache("capacity_too_small", {"capacity": 2})
    cache("capacity_zero", {"capacity": 0})
    cache("capacity_beyond_words", {"capacity": 2**70})
    cache("capacity_of_all_memory", {"capacity": 2**58})
    cache("capacity_a_float", {"capacity": 8.0})
    cache("window_too_wide", {"window": 8})
    cache("window_negative", {"window": -1})
    cache("dtype_unknown", {"dtype": "int8"})
    cache("dtype_another", {"dtype": "float64"})
    cache("option_missing", {"head_dim": "absent"})
    cache("option_unknown", {"colour": "red"})
    cache("keys_missing", keys=None)
    cache("keys_flat", keys=ones.ravel())
    cache("keys_integers", {"dtype": "float64"}, keys=ones.astype(np.int64))
    cache("keys_half", keys=ones.astype(np.float16))
    cache("keys_of_the_same_size", {"dtype": "bfloat16"}, keys=ones.astype(np.float16))
    cache("values_of_another_shape", values=ones[:1])
    cache("values_fewer_than_rows", values=ones[:, :, :2])
    cache("tensor_unexpected", more=ones)
    cache("rows_beyond_keys", rows=np.array([4, 2]))
    cache("rows_negative", rows=np.array([-1, 2]))
    cache("rows_floats", rows=np.array([3, 2], np.float32))
    cache("rows_of_another_shape", rows=np.array([3]))
    cache("lengths_below_rows", lengths=np.array([1, 2]))
    cache("lengths_beyond_words", lengths=np.array([2**64 - 1, 2], np.uint64))
    cache("lengths_huge", lengths=np.array([2**62, 2]))


if __name__ == "__main__":
    main()
