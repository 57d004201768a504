"""Files of layers and of caches: what is not as it was written is refused, or loads whole."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import multihead as mh
import net_draws
from fuzz import hostile, judge, layer_calls
from fuzz.draws import Draws

_FOLDER = tempfile.TemporaryDirectory(
    prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
)
PATH = Path(_FOLDER.name) / "file.safetensors"


def written(draws: Draws) -> tuple[Any, bytes]:
    """A layer or a cache, and its file."""
    if draws.flip(0.6):
        dtype = draws.choice(layer_calls.DTYPES)
        made = layer_calls.draw_options(draws, dtype)
        layer = mh.MultiheadAttention(
            **made, dtype=dtype, batch_first=draws.flip(), seed=draws.word()
        )
        mh.checkpoint.save(layer, PATH)
        return layer, PATH.read_bytes()
    sizes = [draws.integers(1, 4) for _ in range(5)]
    dtype = draws.choice(["float32", "float64", "float16", "bfloat16"])
    window = draws.choice([None, 0, sizes[2] - 1])
    cache = mh.KVCache(*sizes, dtype=dtype, window=window)
    cache.keys[...] = net_draws.normal(draws, cache.keys.shape, cache.keys.dtype)
    cache.lengths = draws.integers(0, sizes[2] + 1, sizes[0])
    mh.checkpoint.save_cache(cache, PATH)
    return cache, PATH.read_bytes()


def spoiled(draws: Draws, data: bytes) -> bytes:
    """A file with flipped, missing, more or exchanged bytes, or another header."""
    way = draws.integers(8)
    if way == 0:
        return data[: draws.integers(len(data) + 1)]
    if way == 1:
        at = draws.integers(len(data) + 1)
        return data[:at] + draws.raw(draws.integers(1, 40)) + data[at:]
    if way == 2:
        return draws.raw(draws.integers(200))
    if way < 5:
        return header(draws, data)
    changed = bytearray(data)
    size = min(len(data), 8 + int.from_bytes(data[:8], "little")) if draws.flip(0.7) else len(data)
    for _ in range(draws.integers(1, 5)):
        at = draws.integers(size)
        changed[at] = changed[at] ^ 1 << draws.integers(8) if way < 7 else draws.byte()
    return bytes(changed)


def header(draws: Draws, data: bytes) -> bytes:
    """A file whose header says something else of itself, or of one tensor."""
    size = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    notes = head.get("__metadata__", {})
    if draws.flip() and notes:
        key = next(iter(notes))
        note = json.loads(notes[key])
        inner = note.get("options", note)
        where = inner if draws.flip(0.85) else note
        name = draws.choice([*where, "unknown"])
        where[name] = value(draws)
        if name == "rope" or draws.flip(0.2):
            where["rope"] = {
                draws.choice(["base", "dims", "layout", "scaling", "cos"]): value(draws)
            }
        notes[key] = json.dumps(note)
    else:
        name = draws.choice([x for x in head if x != "__metadata__"])
        field = draws.choice(["dtype", "shape", "data_offsets"])
        head[name][field] = draws.choice(
            [value(draws), [draws.limit(), draws.limit()], "F64", "I32", "BF16", "C64", "BOOL"]
        )
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + body


def value(draws: Draws) -> Any:
    """A value as JSON has them."""
    simple = [
        None,
        True,
        -1,
        0,
        1,
        2.5,
        draws.limit(),
        10**400,
        float("nan"),
        "x",
        "float64",
        [],
        {},
    ]
    found = draws.choice([*simple, [1, 2], [[1]], {"a": None}, float("inf"), -0.0, "\ud800"])
    for _ in range(draws.choice([0, 0, 0, 1, 5])):
        found = [found]
    return found


def one(draws: Draws) -> None:
    """One input."""
    made, data = written(draws)
    is_layer = isinstance(made, mh.MultiheadAttention)
    load = mh.checkpoint.load if is_layer else mh.checkpoint.load_cache
    whole = draws.flip(0.1)
    changed = data if whole else spoiled(draws, data)
    PATH.write_bytes(changed)
    if draws.flip(0.05):  # one of the other kind
        load, whole = (mh.checkpoint.load_cache if is_layer else mh.checkpoint.load), False
    judge.show(made, len(data), changed[:400])
    found: list[Any] = []
    if judge.refused(lambda: found.append(load(PATH)), [], (ValueError, MemoryError)) is not None:
        judge.expect(not whole, "a whole file was refused")
        return
    judge.expect(PATH.read_bytes() == changed, "loading changed the file")
    works(draws, found[0])
    if whole:
        for name, x in made.state_dict().items():
            again = found[0].state_dict()[name]
            judge.expect(judge.bits([x]) == judge.bits([again]), f"{name} came back otherwise")
        judge.expect(found[0].options() == made.options(), "options came back otherwise")


def works(draws: Draws, loaded: Any) -> None:
    """What was loaded is whole: it can be called, and saved once more."""
    repr(loaded)
    if isinstance(loaded, mh.KVCache):
        mh.checkpoint.save_cache(loaded, PATH)
        again = mh.checkpoint.load_cache(PATH)
    else:
        kdim, vdim = loaded.kdim, loaded.vdim
        names = {"bfloat16": layer_calls.BFLOAT16}
        dtype = np.dtype(names.get(loaded.dtype, loaded.dtype))
        q, k, v = (np.ones((2, 1, x), dtype) for x in (loaded.embed_dim, kdim, vdim))
        out, _ = loaded(q, k, v)
        loaded.backward(out)
        mh.checkpoint.save(loaded, PATH)
        again = mh.checkpoint.load(PATH)
    for name, x in loaded.state_dict().items():
        judge.expect(judge.bits([x]) == judge.bits([again.state_dict()[name]]), name)
    hostile.anything(draws)
