"""Steps over caches of keys and values, of the NumPy layer and of the torch module."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

import multihead as mh
import net_draws
from fuzz import hostile, judge, layer_calls
from fuzz.draws import Draws
from fuzz.layer_calls import BFLOAT16
from multihead import reference
from multihead.torch import MultiheadAttention
from tolerance import FORWARD, tolerance

_TORCH = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}
_TORCH |= {"bfloat16": torch.bfloat16}


def to_torch(x: Any) -> torch.Tensor:
    """A tensor of an array's values."""
    if x.dtype == BFLOAT16:
        return torch.from_numpy(x.copy().view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def to_numpy(x: torch.Tensor) -> Any:
    """And back."""
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy().view(BFLOAT16)
    return x.numpy()


class Model:
    """A layer in eval mode, of either kind, and a cache of it."""

    def __init__(self, draws: Draws) -> None:
        self.dtype = draws.choice(layer_calls.DTYPES)
        made = layer_calls.draw_options(draws, self.dtype)
        self.made = made | {"dropout": 0.0, "add_bias_kv": False, "add_zero_attn": False}
        self.params = layer_calls.parameters(draws, self.made, self.dtype)
        self.of_torch = draws.flip(0.4)
        name = self.dtype.name
        if self.of_torch:
            how: dict[str, Any] = {"dtype": _TORCH[name], "batch_first": True}
            self.layer: Any = MultiheadAttention(**self.made, **how)
            self.layer.load_state_dict({k: to_torch(x) for k, x in self.params.items()})
        else:
            self.layer = mh.MultiheadAttention(**self.made, dtype=name, batch_first=True, seed=0)
            self.layer.load_state_dict(self.params)
        self.layer.eval()
        store = None
        if name == "float32" and draws.flip(0.3):
            store = draws.choice(["float16", "bfloat16"])
        capacity = draws.integers(1, 20) if draws.flip(0.6) else draws.integers(250, 400)
        self.batch = draws.integers(1, 4)
        self.cache = self.layer.new_kv_cache(self.batch, capacity, store)
        self.store = self.cache.keys.dtype

    def call(self, inputs: Any, **options: Any) -> tuple[Any, Any]:
        """A step, with NumPy arrays on both sides."""
        if not self.of_torch:
            return self.layer(*inputs, kv_cache=self.cache, **options)
        made = {id(x): to_torch(x) for x in inputs}
        masks = {k: to_torch(x) if isinstance(x, np.ndarray) else x for k, x in options.items()}
        with torch.no_grad():
            out, weights = self.layer(*(made[id(x)] for x in inputs), kv_cache=self.cache, **masks)
        return to_numpy(out), None if weights is None else to_numpy(weights)

    def tokens(self, draws: Draws, count: int) -> list[Any]:
        """Inputs of new tokens; what is one array stays one."""
        made = self.made
        widths = [made[x] or made["embed_dim"] for x in ("embed_dim", "kdim", "vdim")]
        query, key, value = (
            net_draws.normal(draws, (self.batch, count, x), self.dtype) for x in widths
        )
        if made["kdim"] is None and draws.flip():
            key = query
        return [query, key, key if value.shape == key.shape and draws.flip() else value]


def project(model: Model, x: Any, part: int, places: Any) -> Any:
    """Query (0), key (1) or value (2) of tokens, (N, heads, tokens, D), turned by their places."""
    made, p = model.made, {k: x.astype(np.float64) for k, x in model.params.items()}
    heads = made["num_heads"] if part == 0 else made.get("num_kv_heads") or made["num_heads"]
    weights, biases = reference.layer._projections(p)
    y = x.astype(np.float64) @ weights[part].T + biases[part]
    y = y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
    rope = made.get("rope")
    if rope is None or part == 2:
        return y
    angles = rope.angles(y.shape[-1], int(places.max(initial=0)) + 1, "float64")
    options = reference.layer.Options(
        num_heads=heads,
        angles=tuple(x.T for x in angles),
        interleaved=rope.layout == "interleaved",
    )
    return reference.layer._turned(y, places, options)


def step(draws: Draws, model: Model) -> None:
    """One step has the numbers that the rows of the cache say, and appends its own."""
    cache, made = model.cache, model.made
    count = draws.choice([1, 1, 2, 3, 5, draws.integers(1, 90)])
    inputs = model.tokens(draws, count)
    rows, lengths = cache._rows.copy(), cache.lengths
    options: dict[str, Any] = {"is_causal": draws.flip(0.7), "need_weights": draws.flip(0.3)}
    options["average_attn_weights"] = draws.flip()
    columns = int(rows.max(initial=0)) + count
    room = columns <= cache.capacity
    if room and draws.flip(0.3):
        shape = (model.batch, made["num_heads"], count, columns)
        four = tuple(x if draws.flip() else 1 for x in shape)
        kind = draws.choice(["bool", "float"])
        float_dtype = np.dtype("float32") if model.dtype.itemsize < 8 else model.dtype
        if model.of_torch and model.dtype.itemsize == 2:
            kind = "bool"
        options["attn_mask"] = net_draws.mask_of(draws, kind, four, float_dtype, True)
    judge.show(made, count, rows, lengths, cache, model.dtype, model.of_torch, options.keys())
    kept = judge.Kept([*inputs, options.get("attn_mask")])
    too_long = (lengths > 2**40 - count).any()
    if too_long or (not room and cache.window is None):
        own = [cache.keys, cache.values, cache._rows, cache._lengths]
        return judge.must_refuse(lambda: model.call(inputs, **options), [*own, *inputs], "no room")
    before = cache.keys.copy(), cache.values.copy()
    if not room:
        why = judge.refused(lambda: model.call(inputs, **options | {"need_weights": False}), inputs)
        many = count > cache.capacity - cache.window
        judge.expect(why is None, f"refused: {why}")
        if many:  # in parts, of which only the last is still there
            return None
        options["need_weights"] = False
        out = None
    else:
        out, weights = model.call(inputs, **options)
    kept.expect("after a step")
    judge.expect((cache.lengths == lengths + count).all(), "lengths after a step")
    after = cache._rows
    judge.expect((after <= cache.capacity).all(), "more rows than there are")
    places = lengths[:, None] + np.arange(count)
    keys, values = (x.astype(np.float64) for x in (cache.keys, cache.values))
    scale = 1.0
    for part, (found, was) in enumerate(zip((cache.keys, cache.values), before, strict=True), 1):
        wanted = project(model, inputs[part], part, places)
        for n in range(model.batch):
            new = found[n, :, after[n] - count : after[n]]
            least = min((model.dtype, model.store), key=lambda x: -tolerance(FORWARD, x))
            judge.near(new, wanted[n], FORWARD, least, "new rows", scale=scale)
            if room:
                old = [x[n, :, : rows[n]] for x in (found, was)]
                judge.expect(judge.bits(old[:1]) == judge.bits(old[1:]), "old rows changed")
    if out is None:
        return None
    _numbers(model, inputs, (keys, values), options, (out, weights))
    return None


def _numbers(model: Model, inputs: Any, rows: Any, options: Any, results: Any) -> None:
    """Hold a step against attention to the rows that the cache has."""
    made, cache, (keys, values), (out, weights) = model.made, model.cache, rows, results
    count, after = inputs[0].shape[1], cache._rows.copy()
    columns = int(after.max(initial=0))
    keys, values = keys[:, :, :columns], values[:, :, :columns]
    for n, end in enumerate(after):
        keys[n, :, end:] = values[n, :, end:] = 0
    if max(np.abs(x).max(initial=0.0) for x in (keys, values)) > 1e30:
        return  # flipped bits: float32 may not hold their scores, as float64 does
    places = cache.lengths[:, None] - count + np.arange(count)
    window = made.get("window")
    sinks = model.params.get("sinks")
    mask = options.get("attn_mask")
    result = reference.attention(
        project(model, inputs[0], 0, places),
        keys,
        values,
        None if mask is None else layer_calls.wide(mask),
        is_causal=options["is_causal"],
        window=window if isinstance(window, tuple) else (window, window),
        query_positions=after - count,
        key_lengths=after,
        softcap=made.get("softcap"),
        alibi_slopes=mh.functional.alibi_slopes(made["num_heads"]) if made.get("alibi") else None,
        sinks=None if sinks is None else sinks.astype(np.float64),
    )
    p = {k: x.astype(np.float64) for k, x in model.params.items()}
    merged = result.out.swapaxes(1, 2).reshape(model.batch, count, -1)
    expected = merged @ p["out_proj.weight"].T + p.get("out_proj.bias", 0.0)
    if np.isfinite(expected).all():
        judge.near(out, expected, FORWARD, model.dtype, "out", scale=np.abs(values).max(initial=1))
    if weights is not None and np.isfinite(result.weights).all():
        wanted = result.weights.mean(1) if options["average_attn_weights"] else result.weights
        judge.near(weights, wanted, FORWARD, model.dtype, "weights", scale=0.1)


def change(draws: Draws, model: Model) -> None:
    """Change a cache through its methods: right, or refused and nothing changed."""
    cache = model.cache
    good = draws.integers(0, cache.capacity + 1, model.batch)
    new = hostile.integers(draws, good) if draws.flip() else good
    state = cache.state_dict()
    if draws.flip():
        name = draws.choice(list(state))
        arrays = isinstance(state[name], np.ndarray) and draws.flip(0.8)
        change = hostile.integers if name in ("rows", "lengths") else hostile.arrays_of
        state[name] = change(draws, state[name]) if arrays else hostile.anything(draws)
    indices = np.array([draws.integers(model.batch) for _ in range(model.batch)])
    at = hostile.integers(draws, indices) if draws.flip() else indices
    way = draws.choice(
        [
            lambda: setattr(cache, "lengths", new),
            lambda: cache.truncate(new),
            lambda: cache.reorder(at),
            lambda: cache.load_state_dict(state),
        ]
    )
    judge.show("change", repr(new), repr(at), [getattr(x, "shape", x) for x in state.values()])
    own = [cache.keys, cache.values, cache._rows, cache._lengths]
    before = judge.Kept(own)
    try:
        way()
    except judge.CLEAN as why:
        judge.expect(str(why), "no reason")
        before.expect(f"after {why}")
    judge.expect((cache._rows >= 0).all() and (cache._rows <= cache.capacity).all(), "rows")
    judge.expect((cache.lengths >= cache._rows).all(), "lengths")
    judge.expect(cache.lengths.max(initial=0) <= 2**40, "far lengths")
    if model.made.get("rope") is not None and cache.lengths.max(initial=0) > 4096:
        cache.reset()


def corrupt(draws: Draws, model: Model) -> None:
    """Bits of a cache are flipped: its content may be any numbers, its counts are looked at."""
    cache = model.cache
    for x in (cache.keys, cache.values):
        raw = x.reshape(-1).view(np.uint8)
        for _ in range(draws.integers(1, 6)):
            raw[draws.integers(raw.size)] ^= 1 << draws.integers(8)
    if draws.flip(0.4):
        x = draws.choice([cache._rows, cache._lengths])
        x[draws.integers(model.batch)] ^= np.int64(1) << np.int64(draws.integers(63))
        held = cache._rows.copy(), cache._lengths.copy()
        inputs = model.tokens(draws, 1)
        how = {"is_causal": True, "need_weights": draws.flip()}
        judge.show("corrupt", *held)
        if model.made.get("rope") is None or (held[1] < 4096).all():  # tables of so many positions
            judge.refused(lambda: model.call(inputs, **how), inputs)
        cache._rows[...] = 0
        cache._lengths[...] = 0


def wrong(draws: Draws, model: Model) -> None:
    """A step with an argument in another's place."""
    inputs = model.tokens(draws, draws.integers(1, 4))
    options: dict[str, Any] = {"is_causal": True}
    if draws.flip(0.6):
        i = draws.integers(3)
        inputs[i] = hostile.arrays_of(draws, inputs[i])
    elif model.of_torch:
        model.layer.train(draws.flip())
        options["attn_mask"] = np.ones((2, 3), bool)
    else:
        model.layer.train(draws.flip())
        name = draws.choice(["attn_mask", "key_padding_mask", "need_weights"])
        options[name] = hostile.anything(draws)
    given = [x for x in inputs if isinstance(x, np.ndarray)]
    if model.of_torch and (len(given) < 3 or any(_strange(x) for x in given)):
        return
    judge.show("wrong", [getattr(x, "shape", x) for x in inputs], options)
    cache = model.cache
    kept = judge.Kept([cache.keys, cache.values, cache._rows, cache._lengths])
    clean = (*judge.CLEAN, RuntimeError) if model.of_torch else judge.CLEAN
    if judge.refused(lambda: model.call(inputs, **options), given, clean) is not None:
        kept.expect("after an error")
    model.layer.eval()


def _strange(x: Any) -> bool:
    names = ("bool", "int8", "int64", "float16", "float32", "float64", "complex64", "complex128")
    return x.dtype.name not in (*names, "bfloat16") or x.nbytes > 1 << 20 or x.size > 1 << 20


def one(draws: Draws) -> None:
    """One input."""
    model = Model(draws)
    for _ in range(draws.integers(1, 6)):
        draws.choice([step, step, step, step, step, change, corrupt, wrong])(draws, model)
    again = copy.deepcopy(model.cache).state_dict()
    for name, x in model.cache.state_dict().items():
        judge.expect(judge.bits([x]) == judge.bits([again[name]]), f"{name} of a copy")
