"""Caches of keys and values: steps over them have the results of the whole text at once."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import multihead as mh
from layer_options import ALL
from multihead import reference
from multihead.torch import MultiheadAttention
from tolerance import FORWARD, assert_close, tolerance

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2, "head_dim": 6, "bias": False},
    "window": {"window": (37, 0), "alibi": True},
    "rotated": {"rope": mh.Rope(), "num_kv_heads": 1, "head_dim": 6},
    "all": ALL,
}


def make(name: str, dtype: str, rng: np.random.Generator) -> mh.MultiheadAttention:
    layer = mh.MultiheadAttention(20, 4, batch_first=True, dtype=dtype, seed=0, **OPTIONS[name])
    for p in layer.parameters().values():
        p[...] = (rng.normal(size=p.shape) / np.sqrt(p.shape[-1])).astype(p.dtype)
    return layer.eval()


def text(layer: mh.MultiheadAttention, n: int, length: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(n, length, 20)).astype(layer.out_proj.weight.dtype)


def steps(
    layer: mh.MultiheadAttention, cache: mh.KVCache, x: np.ndarray, sizes: list[int], **options: Any
) -> np.ndarray:
    """The outputs of a text that is given in parts of these sizes, the last of them repeated."""
    outs, at = [], 0
    while at < x.shape[1]:
        part = x[:, at : at + (sizes.pop(0) if len(sizes) > 1 else sizes[0])]
        out, _ = layer(part, part, part, is_causal=True, kv_cache=cache, **options)
        outs.append(out)
        at += part.shape[1]
    return np.concatenate(outs, 1)


@pytest.mark.parametrize("sizes", [[1], [3, 1, 70], [150, 1]])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.usefixtures("isa")
def test_steps_are_the_whole(
    name: str, dtype: str, sizes: list[int], rng: np.random.Generator
) -> None:
    layer = make(name, dtype, rng)
    x = text(layer, 3, 290, rng)
    whole, _ = layer(x, x, x, is_causal=True, need_weights=False)
    cache = layer.new_kv_cache(3, 290)
    out = steps(layer, cache, x, list(sizes), need_weights=False)
    assert cache.lengths.tolist() == [290] * 3
    assert_close(out, whole, tolerance(FORWARD, dtype))


@pytest.mark.parametrize("chunk", [5, 64, 100])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPTIONS)
def test_prefill_in_chunks_has_the_bits_of_prefill_at_once(
    name: str, dtype: str, chunk: int, rng: np.random.Generator
) -> None:
    layer = make(name, dtype, rng)
    x = text(layer, 2, 5 * chunk, rng)
    caches = [layer.new_kv_cache(2, 5 * chunk) for _ in range(2)]
    once = steps(layer, caches[0], x, [5 * chunk])
    parts = steps(layer, caches[1], x, [chunk])
    assert np.array_equal(once, parts)
    assert np.array_equal(once, layer(x, x, x, is_causal=True)[0])
    assert np.array_equal(caches[0].keys, caches[1].keys)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_and_masks(name: str, average: bool, rng: np.random.Generator) -> None:
    layer = make(name, "float64", rng)
    x = text(layer, 2, 23, rng)
    mask = np.where(rng.random((23, 23)) < 0.2, -np.inf, rng.normal(size=(23, 23)))
    options: dict[str, Any] = {"is_causal": True, "average_attn_weights": average}
    whole, expected = layer(x, x, x, attn_mask=mask, **options)
    cache = layer.new_kv_cache(2, 40)
    layer(*[x[:, :19]] * 3, kv_cache=cache, **options)
    out, weights = layer(*[x[:, 19:]] * 3, attn_mask=mask[19:], kv_cache=cache, **options)
    assert_close(out, whole[:, 19:], 1e-12)
    assert_close(weights, expected[..., 19:, :], 1e-12)


@pytest.mark.parametrize("store", ["bfloat16", "float16"])
def test_half_rows_under_float32(store: str, rng: np.random.Generator) -> None:
    layer = make("all", "float32", rng)
    x = text(layer, 2, 300, rng)
    cache = layer.new_kv_cache(2, 300, store)
    assert cache.nbytes * 2 == layer.new_kv_cache(2, 300).nbytes
    out = steps(layer, cache, x, [270, 1], need_weights=False)
    rounded = copy.deepcopy(cache)
    # the same with the rounded rows in the layer's own precision
    wide = layer.new_kv_cache(2, 300)
    wide.keys[...], wide.values[...] = rounded.keys, rounded.values
    wide.lengths = 299
    last = x[:, 299:]
    again, _ = layer(last, last, last, is_causal=True, kv_cache=wide)
    bound = {"bfloat16": 4e-3, "float16": 1e-3}[store]  # the last row is rounded in one of them
    assert_close(out[:, 299:], again, bound)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_layers(dtype: str, rng: np.random.Generator) -> None:
    layer = make("all", dtype, rng)
    x = text(layer, 2, 280, rng)
    whole, _ = layer(x, x, x, is_causal=True)
    out = steps(layer, layer.new_kv_cache(2, 280), x, [265, 1], need_weights=False)
    assert_close(out, whole, 2 * tolerance(FORWARD, dtype))  # keys are rounded once more


def test_sequences_append_at_their_own_ends(rng: np.random.Generator) -> None:
    layer = make("all", "float64", rng)
    x = text(layer, 3, 30, rng)
    lengths = [5, 20, 11]
    cache = layer.new_kv_cache(3, 40)
    prompt = x[:, :20]  # padded on the right
    layer(prompt, prompt, prompt, is_causal=True, kv_cache=cache)
    cache.truncate(lengths)
    ends = np.stack([x[n, length : length + 4] for n, length in enumerate(lengths)])
    out, _ = layer(ends, ends, ends, is_causal=True, kv_cache=cache)
    assert cache.lengths.tolist() == [9, 24, 15]
    for n, length in enumerate(lengths):
        own = x[n : n + 1, : length + 4]
        whole, _ = layer(own, own, own, is_causal=True)
        assert_close(out[n], whole[0, length:], 1e-12)


@pytest.mark.parametrize("capacity", [51, 60, 120])
def test_a_window_lets_texts_grow_beyond_the_capacity(
    capacity: int, rng: np.random.Generator
) -> None:
    layer = make("all", "float64", rng)
    x = text(layer, 2, 400, rng)
    whole, _ = layer(x, x, x, is_causal=True)
    cache = layer.new_kv_cache(2, capacity)
    assert cache.window == 50
    out = steps(layer, cache, x, [1, capacity - 50, 1])
    assert cache.lengths.tolist() == [400, 400]
    assert_close(out, whole, 1e-12)
    with pytest.raises(ValueError, match="lengths: expected at least"):
        cache.truncate(100)


def test_a_draft_is_taken_back_after_rows_were_moved(rng: np.random.Generator) -> None:
    layer = make("all", "float64", rng)
    x, draft = text(layer, 2, 260, rng), text(layer, 2, 9, rng)
    cache = layer.new_kv_cache(2, 100)
    steps(layer, cache, x[:, :230], [90, 6])  # rows were moved, and some more came since
    layer(draft, draft, draft, is_causal=True, kv_cache=cache)
    lengths = [230, 226]
    cache.truncate(lengths)
    assert cache.lengths.tolist() == lengths
    for _ in range(5):
        ends = np.stack([x[n, length : length + 4] for n, length in enumerate(lengths)])
        out, _ = layer(ends, ends, ends, is_causal=True, kv_cache=cache)
        for n, length in enumerate(lengths):
            own = x[n : n + 1, : length + 4]
            whole, _ = layer(own, own, own, is_causal=True)
            assert_close(out[n], whole[0, length:], 1e-12)
        lengths = [length + 4 for length in lengths]


def test_what_a_window_still_sees_is_not_truncated(rng: np.random.Generator) -> None:
    layer = make("all", "float64", rng)
    x = text(layer, 2, 130, rng)
    cache = layer.new_kv_cache(2, 60)
    steps(layer, cache, x[:, :123], [1])  # 50 rows were kept at 120
    with pytest.raises(
        ValueError, match=r"lengths: expected at least \[120, 120\], .* \[123, 119\]"
    ):
        cache.truncate([123, 119])
    assert cache.lengths.tolist() == [123, 123]
    cache.truncate(120)
    out = steps(layer, cache, x[:, 120:], [1])
    whole, _ = layer(x, x, x, is_causal=True)
    assert_close(out, whole[:, 120:], 1e-12)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_long_prompt_goes_through_a_small_window(
    batch_first: bool, rng: np.random.Generator
) -> None:
    options = OPTIONS["all"]
    layer = mh.MultiheadAttention(20, 4, batch_first=batch_first, dtype="float64", **options).eval()
    x = rng.normal(size=(2, 400, 20) if batch_first else (400, 2, 20))
    whole, _ = layer(x, x, x, is_causal=True)
    cache = layer.new_kv_cache(2, 90)
    out, _ = layer(x, x, x, is_causal=True, need_weights=False, kv_cache=cache)
    assert_close(out, whole, 1e-12)
    assert cache.lengths.tolist() == [400, 400]
    with pytest.raises(ValueError, match="expected no weights or masks with more than 40 tokens"):
        layer(x, x, x, is_causal=True, kv_cache=cache)


def test_beams_are_reordered(rng: np.random.Generator) -> None:
    layer = make("grouped", "float64", rng)
    x = text(layer, 3, 12, rng)
    cache = layer.new_kv_cache(3, 20)
    layer(*[x[:, :8]] * 3, is_causal=True, kv_cache=cache)
    cache.truncate([8, 6, 7])
    cache.reorder([2, 0, 0])
    assert cache.lengths.tolist() == [7, 8, 8]
    out, _ = layer(*[x[:, 8:9]] * 3, is_causal=True, kv_cache=cache)
    for n, (source, length) in enumerate([(2, 7), (0, 8), (0, 8)]):
        own = np.concatenate([x[source : source + 1, :length], x[n : n + 1, 8:9]], 1)
        assert_close(out[n], layer(own, own, own, is_causal=True)[0][0, -1:], 1e-12)


def test_it_is_saved_copied_and_pickled(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("safetensors")
    layer = make("all", "bfloat16", rng)
    x = text(layer, 2, 70, rng)
    cache = layer.new_kv_cache(2, 60)
    steps(layer, cache, x[:, :65], [5])
    mh.checkpoint.save_cache(cache, tmp_path / "cache")
    others = [copy.deepcopy(cache), copy.copy(cache), pickle.loads(pickle.dumps(cache))]
    others.append(mh.checkpoint.load_cache(tmp_path / "cache"))
    end = x[:, 65:]
    expected, _ = layer(end, end, end, is_causal=True, kv_cache=cache)
    for other in others:
        assert other.options() == cache.options()
        assert np.array_equal(layer(end, end, end, is_causal=True, kv_cache=other)[0], expected)
    assert not np.shares_memory(others[1].keys, cache.keys)


def test_unbatched_and_tokens_first(rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(20, 4, dtype="float64", seed=0, alibi=True).eval()
    x = rng.normal(size=(9, 2, 20))
    whole, _ = layer(x, x, x, is_causal=True)
    cache, alone = layer.new_kv_cache(2, 9), layer.new_kv_cache(1, 9)
    for i in range(9):
        part = x[i : i + 1]
        out, _ = layer(part, part, part, is_causal=True, kv_cache=cache)
        assert_close(out, whole[i : i + 1], 1e-12)
        out, weights = layer(*[part[:, 1]] * 3, is_causal=True, kv_cache=alone)
        assert_close(out, whole[i : i + 1, 1], 1e-12)
        assert weights.shape == (1, i + 1)


def test_other_inputs_than_queries(rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(20, 4, dtype="float64", kdim=7, vdim=9, batch_first=True).eval()
    q, k, v = (rng.normal(size=(2, 6, width)) for width in (20, 7, 9))
    whole, _ = layer(q, k, v, is_causal=True)
    cache = layer.new_kv_cache(2, 6)
    parts = [
        layer(q[:, s], k[:, s], v[:, s], is_causal=True, kv_cache=cache)[0]
        for s in (slice(0, 4), slice(4, 5), slice(5, 6))
    ]
    assert_close(np.concatenate(parts, 1), whole, 1e-12)


def test_the_oracle_agrees(rng: np.random.Generator) -> None:
    layer = make("grouped", "float64", rng)
    x = text(layer, 1, 6, rng)
    cache = layer.new_kv_cache(1, 6)
    layer(*[x[:, :5]] * 3, is_causal=True, kv_cache=cache)
    out, _ = layer(*[x[:, 5:]] * 3, is_causal=True, kv_cache=cache)
    result = reference.layer.forward(
        layer.parameters(), x, x, x, num_heads=4, num_kv_heads=2, is_causal=True
    )
    assert_close(out, result.out[:, 5:], 1e-12)


def test_a_full_cache_raises_and_stays(rng: np.random.Generator) -> None:
    layer = make("grouped", "float64", rng)
    x = text(layer, 2, 6, rng)
    cache = layer.new_kv_cache(2, 8)
    layer(x, x, x, is_causal=True, kv_cache=cache)
    before = pickle.dumps(cache)
    with pytest.raises(ValueError, match=r"kv_cache: expected room for 6 more of 8 rows"):
        layer(x, x, x, is_causal=True, kv_cache=cache)
    assert pickle.dumps(cache) == before
    cache.reset()
    layer(x, x, x, is_causal=True, kv_cache=cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer, x, c: layer.train()(x, x, x, kv_cache=c), "None in training mode"),
        (lambda layer, x, c: layer(x, x[:, :2], x[:, :2], kv_cache=c), "as many new tokens"),
        (lambda layer, x, c: layer(x[:1], x[:1], x[:1], kv_cache=c), "expected keys and values"),
        (lambda layer, x, c: layer(x, x, x, kv_cache=[]), "kv_cache: expected a KVCache"),
        (
            lambda layer, x, c: layer(x, x, x, np.zeros((2, 3), bool), kv_cache=c),
            "key_padding_mask: expected None beside a cache",
        ),
        (
            lambda layer, x, c: layer(x, x, x, attn_mask=np.zeros((3, 9)), kv_cache=c),
            "attn_mask",
        ),
        (lambda layer, x, c: c.truncate(7), "lengths: expected at most"),
        (lambda layer, x, c: c.truncate([1, 1, 1]), "lengths"),
        (lambda layer, x, c: c.reorder([0, 2]), "indices: expected integers from 0 to 1"),
        (lambda layer, x, c: setattr(c, "lengths", 99), "lengths: expected integers from 0 to 9"),
        (lambda layer, x, c: c.load_state_dict({}), "state: expected keys and values"),
        (lambda layer, x, c: layer.new_kv_cache(2, 0), "capacity"),
        (lambda layer, x, c: layer.new_kv_cache(2, 9, "float32"), "kv_cache: expected a dtype"),
        (lambda layer, x, c: mh.KVCache(1, 1, 4, 2, window=4), "capacity: expected window"),
    ],
)
def test_what_makes_no_sense_is_refused(
    change: Any, message: str, rng: np.random.Generator
) -> None:
    layer = make("grouped", "float64", rng)
    cache, x = layer.new_kv_cache(2, 9), text(layer, 2, 3, rng)
    with pytest.raises((ValueError, TypeError), match=message):
        change(layer, x, cache)
    assert cache.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("tokens", [3, 40])
def test_a_text_that_would_be_too_long_is_refused_before_anything_moves(
    tokens: int, rng: np.random.Generator
) -> None:
    layer = mh.MultiheadAttention(16, 2, window=(7, None), batch_first=True, seed=0).eval()
    x = rng.standard_normal((1, 40, 16), np.float32)
    cache = layer.new_kv_cache(1, 20)
    layer(x[:, :18], x[:, :18], x[:, :18], is_causal=True, kv_cache=cache, need_weights=False)
    state = cache.state_dict() | {"lengths": np.array([2**40 - 1])}
    cache.load_state_dict(state)
    before = {name: x.copy() for name, x in cache.state_dict().items()}
    with pytest.raises(ValueError, match=r"kv_cache: expected texts of 2\*\*40 tokens at most"):
        layer(*[x[:, :tokens]] * 3, is_causal=True, kv_cache=cache, need_weights=False)
    for name, kept in cache.state_dict().items():
        np.testing.assert_array_equal(kept, before[name], err_msg=name)
    layer(*[x[:, :1]] * 3, is_causal=True, kv_cache=cache, need_weights=False)
    assert cache.lengths.tolist() == [2**40]


def test_a_layer_with_rows_after_its_keys_has_none() -> None:
    layer = mh.MultiheadAttention(8, 2, add_zero_attn=True)
    with pytest.raises(ValueError, match="kv_cache: expected a layer without rows after its keys"):
        layer.new_kv_cache(1, 4)


@pytest.mark.timeout(60)
def test_another_thread_that_changes_lengths_in_a_call_reaches_no_other_memory() -> None:
    layer = mh.MultiheadAttention(64, 4, batch_first=True, seed=0).eval()
    cache, x = layer.new_kv_cache(8, 300), np.ones((8, 200, 64), np.float32)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            cache._rows[...] = 2**40  # as a step that is counted at the wrong moment, and worse
            cache._rows[...] = 0

    other = threading.Thread(target=disturb)
    other.start()
    try:
        for _ in range(60):
            with contextlib.suppress(ValueError, IndexError):
                layer(x, x, x, need_weights=False, is_causal=True, kv_cache=cache)
    finally:
        stop.set()
        other.join()
    cache.reset()
    out, _ = layer(x, x, x, is_causal=True, kv_cache=cache)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_mask_that_is_refused_moves_no_rows(kind: str, rng: np.random.Generator) -> None:
    how: dict[str, Any] = {"window": (4, 0), "batch_first": True}
    if kind == "torch":
        layer: Any = MultiheadAttention(8, 2, **how).eval()
    else:
        layer = mh.MultiheadAttention(8, 2, **how, seed=0).eval()
    cache = layer.new_kv_cache(2, 6)
    cache.keys[...] = rng.standard_normal(cache.keys.shape)
    cache.lengths = 6
    before = cache.keys.copy()
    x, mask = np.ones((2, 1, 8), np.float32), np.ones((2, 3), bool)
    if kind == "torch":
        x, mask = torch.from_numpy(x), torch.from_numpy(mask)
    with torch.no_grad(), pytest.raises(ValueError, match="attn_mask"):
        layer(x, x, x, attn_mask=mask, kv_cache=cache)
    assert np.array_equal(cache.keys, before)
    assert cache._rows.tolist() == [6, 6]
