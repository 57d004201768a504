"""Files of others: each attack is one clear error that names the file, and nothing is unpickled."""

from __future__ import annotations

import ast
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multihead as mh

ROOT = Path(__file__).resolve().parent
ATTACKS = sorted((ROOT / "attacks").glob("*.safetensors"))
CACHES = sorted((ROOT / "attacks" / "caches").glob("*.safetensors"))
PACKAGE = Path(mh.__file__).parent


def refused(path: Path) -> str:
    """What is said of a file that is refused, without much memory taken."""
    load = mh.checkpoint.load_cache if path.parent.name == "caches" else mh.checkpoint.load
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, MemoryError), match=r"^path: ") as caught:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert path.name in said
    assert said.isprintable()
    assert len(said) < 600 + len(str(path))
    return said


def test_there_are_attacks() -> None:
    assert len(ATTACKS) > 80
    assert len(CACHES) > 25


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.stem)
def test_a_hostile_file_is_refused_by_name(path: Path) -> None:
    assert refused(path).startswith("path: expected a file that multihead.checkpoint.save wrote")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", CACHES, ids=lambda path: path.stem)
def test_a_hostile_cache_is_refused_by_name(path: Path) -> None:
    said = refused(path)
    if "capacity_of_all" not in path.name and "capacity_beyond" not in path.name:
        assert said.startswith("path: expected a file that multihead.checkpoint.save_cache wrote")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path, cut = tmp_path / "layer", tmp_path / "cut"
    mh.checkpoint.save(mh.MultiheadAttention(4, 2, seed=0), path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"^path: expected a file that multihead"):
            mh.checkpoint.load(cut)


@pytest.mark.timeout(60)
def test_bytes_changed_at_random_are_refused_or_make_a_layer_that_computes(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    rope = mh.Rope(scaling={"rope_type": "linear", "factor": 2.0})
    mh.checkpoint.save(mh.MultiheadAttention(8, 2, rope=rope, window=3, seed=0), path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(3)
    x = np.ones((3, 8), np.float32)
    loaded, refusals = 0, set()
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(header)] = draw.choice(b'0123456789-.eE"{}[],:NnUF \xff\x00')
        path.write_bytes(changed)
        try:
            layer = mh.checkpoint.load(path)
        except ValueError as error:
            refusals.add(str(error).partition(" that")[0])
            continue
        loaded += 1
        size = layer.embed_dim
        layer(*[np.resize(x, (3, n)) for n in (size, layer.kdim, layer.vdim)])
    assert 0 < loaded < 600
    assert refusals == {"path: expected a file"}


def state_of(cache: mh.KVCache) -> dict[str, Any]:
    """All that a cache holds, rows that are not in use too."""
    return {"k": cache.keys.copy(), "v": cache.values.copy(), "n": cache.lengths}


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_cache_s_state_of_another_dtype_changes_nothing(dtype: str) -> None:
    cache = mh.KVCache(2, 1, 4, 3, dtype=dtype)
    cache.keys[...], cache.values[...] = 1, 2
    cache.lengths = 3
    state, before = cache.state_dict(), state_of(cache)
    size = cache.keys.dtype.itemsize
    others = [np.dtype(f"i{size}"), np.dtype(f"V{size}"), np.dtype(f">f{size}")]
    others += [np.dtype(object), np.dtype("f2" if dtype == "bfloat16" else "u2")]
    for other in others:
        wrong = np.zeros(state["values"].shape, other)
        with pytest.raises(TypeError, match=r"^values: expected"):
            cache.load_state_dict(state | {"keys": state["keys"] * 0, "values": wrong})
    for given in (None, [1], {1: 2, "keys": 3}, state | {"more": 1}):
        with pytest.raises((ValueError, TypeError), match=r"^state: expected"):
            cache.load_state_dict(given)  # type: ignore[arg-type]
    for name, array in state_of(cache).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    cache.load_state_dict(state)


def test_json_that_says_something_twice_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    mh.checkpoint.save(mh.MultiheadAttention(4, 2, seed=0, rope=mh.Rope()), path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    note = json.loads(whole[8 : 8 + size])["__metadata__"]["multihead"]
    for name, value in json.loads(note)["options"].items():
        once = json.dumps({name: value})[1:-1]
        assert once in note
        twice = json.dumps(note.replace(once, f"{once}, {once}"))
        header = whole[8 : 8 + size].decode().replace(json.dumps(note), twice).encode()
        header += b" " * (-len(header) % 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + size :])
        with pytest.raises(ValueError, match=f"'{name}' twice"):
            mh.checkpoint.load(path)


# What turns bytes into objects of any class, or runs them.
UNPICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS = {"eval", "exec", "compile"}  # by themselves; as methods they are others'
LOADS = {
    "load",
    "loads",
    "Unpickler",
    "fromfile",
    "memmap",
    "genfromtxt",
}


def test_nothing_is_unpickled() -> None:
    found = []
    for source in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [x.name for x in node.names if x.name.split(".")[0] in UNPICKLES]
            elif isinstance(node, ast.ImportFrom):
                module = (node.module or "").split(".")[0]
                names = [module] if module in UNPICKLES else []
            elif isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                loads = function.split(".")[-1] in LOADS and not function.startswith("json.")
                names = [function] if loads or function in RUNS else []
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = [node.arg]
            found += [f"{source.name}:{node.lineno}: {name}" for name in names]
    assert found == []
