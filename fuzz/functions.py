"""Attention alone and its backward: `multihead.functional`."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import net_draws
from fuzz import hostile, judge
from fuzz.draws import Draws
from multihead import functional, reference
from tolerance import FORWARD, GRADIENT

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (*map(np.dtype, ("float32", "float32", "float64", "float16")), BFLOAT16)
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 32, 33, 64, 65)


class Call(NamedTuple):
    """One call: its inputs, its options, and its scores' shape as (N, H, L, S)."""

    inputs: tuple[Any, Any, Any]
    options: dict[str, Any]
    scores: tuple[int, int, int, int]

    @property
    def arrays(self) -> list[Any]:
        """All arrays that the call is given."""
        return [*self.inputs, *(x for x in self.options.values() if isinstance(x, np.ndarray))]


def lengths(draws: Draws) -> tuple[int, int, int]:
    """N, L and S: mostly small, often across tiles, few queries of many keys, many, or none."""
    way = draws.integers(16)
    n = draws.integers(1, 4)
    if way < 8:
        return n, draws.integers(1, 10), draws.integers(1, 10)
    if way < 10:
        return 1, draws.integers(60, 70), draws.integers(1, 70)
    if way == 10:
        return 1, draws.integers(1, 70), draws.integers(120, 140)
    if way < 14:
        return draws.integers(1, 3), draws.integers(1, 6), draws.integers(250, 700)
    if way == 14:
        return draws.integers(8, 14), draws.integers(1, 6), draws.integers(1, 20)
    return draws.integers(0, 3), draws.integers(0, 3), draws.integers(0, 3)


def values(draws: Draws, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of normal numbers, anywhere in memory."""
    return hostile.placed(draws, net_draws.normal(draws, shape, dtype))


def mask_of(draws: Draws, scores: tuple[int, ...], dtype: Any) -> Any:
    """A mask that broadcasts to the scores, True for keys that are seen."""
    rank = draws.integers(0, len(scores) + 1)
    shape = tuple(x if draws.flip(0.6) else 1 for x in scores[len(scores) - rank :])
    float_dtype = draws.choice([dtype, np.dtype("float32"), np.dtype("float64")])
    mask = net_draws.mask_of(draws, draws.choice(["bool", "float"]), shape, float_dtype, False)
    if mask.dtype != bool and draws.flip(0.2):
        lowest = np.finfo(np.float32 if mask.dtype.itemsize > 2 else np.float16).min
        mask[np.isneginf(mask)] = lowest
    if mask.ndim and mask.shape[-1] > 2 and draws.flip(0.1):
        mask = mask[..., : draws.integers(2, mask.shape[-1])]
    return hostile.placed(draws, mask)


def rules_of(draws: Draws, scores: tuple[int, int, int, int]) -> dict[str, Any]:
    """Rules of the scores."""
    n, heads, _, s = scores
    some: dict[str, Any] = {}
    if draws.flip(0.3):
        left, right = draws.integers(0, 150), draws.integers(0, 150)
        some["window"] = draws.choice([(left, right), (left, None), (None, right), left, [0, 1]])
    if draws.flip(0.3):
        each = draws.integers(-20, s + 1, n)
        some["query_offset"] = draws.choice(["end", 5, -3, each, each.astype(np.int32)])
    if draws.flip(0.25):
        some["key_lengths"] = draws.integers(0, s + 1, n)
    if draws.flip(0.2):
        some["softcap"] = draws.uniform(0.5, 5)
    if draws.flip(0.25):
        some["alibi_slopes"] = draws.uniform(0, 0.3, draws.choice([(heads,), (n, heads)]))
    if draws.flip(0.25):
        some["sinks"] = draws.standard_normal((heads,))
    return some


def draw(draws: Draws) -> Call:
    """A call that is right."""
    dtype = draws.choice(DTYPES)
    n, length, s = lengths(draws)
    heads, group = draws.integers(1, 4), draws.choice([1, 1, 2, 3])
    d, dv = draws.choice(WIDTHS), draws.choice(WIDTHS)
    if n * heads * group * length * s * (d + dv) > 3_000_000:
        n, heads, group, d, dv = 1, 1, 1, min(d, 9), min(dv, 9)
    gqa = group > 1 or draws.flip(0.2)
    lead: tuple[int, ...] = (n, heads)
    if not gqa and draws.flip(0.4):
        lead = draws.choice([(), (heads,), (1, n, heads), (n, 1, heads)])
    lead_q = (*lead[:-1], lead[-1] * group) if lead else ()
    kept = dtype
    if dtype == np.float32 and draws.flip(0.15):
        kept = draws.choice([np.dtype("float16"), BFLOAT16])
    k = values(draws, (*lead, s, d), kept)
    v = values(draws, (*lead, s, dv), kept)
    q = values(draws, (*lead_q, length, d), dtype)
    if d == dv and draws.flip(0.3):
        v = k
        q = k if length == s and group == 1 and kept == dtype and draws.flip() else q
    given = (*lead_q, length, s)
    options: dict[str, Any] = {"is_causal": draws.flip(0.35), "enable_gqa": gqa}
    shape = (lambda n, h: (n, h, length, s))(*_folded(lead_q, gqa))
    if draws.flip() and len(lead) >= 1:
        rules = rules_of(draws, (int(np.prod(lead_q[:-1])), lead_q[-1], length, s))
        options |= rules
        if rules:
            shape = (int(np.prod(lead_q[:-1])), lead_q[-1], length, s)
    if draws.flip():
        options["attn_mask"] = mask_of(
            draws, given, np.dtype("float32") if dtype == BFLOAT16 else dtype
        )
    if draws.flip(0.3):
        options["dropout_p"] = draws.choice([0.1, 0.5, 1.0])
    options["seed"] = draws.word()
    options["scale"] = draws.choice([None, None, 0.3, 1.0, -0.5, 0.0])
    _poison(draws, (q, k, v), options, shape)
    return Call((q, k, v), options, shape)


def _folded(lead: tuple[int, ...], of_heads: bool) -> tuple[int, int]:
    if len(lead) == 1:
        return (1, lead[0]) if of_heads else (lead[0], 1)
    return (int(np.prod(lead[:-1])), lead[-1]) if lead else (1, 1)


def _poison(draws: Draws, inputs: Any, options: dict[str, Any], scores: Any) -> None:
    """Put what is no number where nothing reads it."""
    q, k, v = inputs
    ends = options.get("key_lengths")
    if ends is None or q is k or not (k.flags.writeable and v.flags.writeable) or k.ndim < 4:
        return
    for n, end in enumerate(ends):
        for x in (k, v):
            if x.ndim == 4:
                x[n, :, end:] = np.nan


def oracle(call: Call, inputs: Any = None) -> reference.AttentionResult:
    """The same call in plain float64."""
    n, heads, length, s = call.scores
    rules = dict(call.options)
    mask, window = rules.pop("attn_mask", None), rules.pop("window", None)
    rules.pop("enable_gqa")
    q, k, v = (x.astype(np.float64) for x in (inputs or call.inputs))
    q = q.reshape(n, heads, length, q.shape[-1])
    key_heads = int(np.prod(k.shape[:-2])) // n if n else k.shape[-3] if k.ndim > 2 else 1
    k, v = (x.reshape(n, key_heads, s, x.shape[-1]) for x in (k, v))
    ends = rules.get("key_lengths")
    if ends is not None:
        for i, end in enumerate(ends):
            k[i, :, end:] = v[i, :, end:] = 0.0
    if mask is not None:
        mask = of_scores(mask, (*call.inputs[0].shape[:-1], s)).reshape(call.scores)
        mask = ~mask if mask.dtype == bool else mask.astype(np.float64)
    offset = rules.pop("query_offset", 0)
    if isinstance(offset, str):
        offset = (np.full(n, s) if ends is None else ends) - length
    if not isinstance(window, tuple | list):
        window = (window, window)
    return reference.attention(
        q,
        k,
        v,
        mask,
        window=tuple(window),
        query_positions=np.broadcast_to(offset, n),
        dropout=rules.pop("dropout_p", 0.0),
        **rules,
    )


def of_scores(mask: Any, scores: tuple[int, ...]) -> Any:
    """A mask in the shape of the scores; keys after its last column are hidden."""
    if mask.ndim and 1 < mask.shape[-1] < scores[-1]:
        fill = False if mask.dtype == bool else -np.inf
        more = [(0, 0)] * (mask.ndim - 1) + [(0, scores[-1] - mask.shape[-1])]
        mask = np.pad(mask, more, constant_values=fill)
    return np.broadcast_to(mask, scores)


def run(call: Call, d_out: Any = None, d_lse: Any = None) -> tuple[Any, ...]:
    """Out, the statistic, and the gradients."""
    out, lse, cache = functional.scaled_dot_product_attention(
        *call.inputs, return_lse=True, return_cache=True, **call.options
    )
    if d_out is None:
        return out, lse, cache
    found = functional.scaled_dot_product_attention_backward(
        d_out, cache, need_mask_grad=True, need_sink_grad=True, d_lse=d_lse
    )
    return out, lse, *found


def right(draws: Draws, call: Call) -> None:
    """A call that is right has the oracle's numbers."""
    kept = judge.Kept(call.arrays)
    q, k, _ = call.inputs
    out, lse, cache = run(call)
    expected = oracle(call)
    judge.near(out.reshape(expected.out.shape), expected.out, FORWARD, _worse(call), "out", scale=1)
    judge.near(lse.reshape(expected.lse.shape), expected.lse, FORWARD, _worse(call), "lse", scale=1)
    d_out = values(draws, out.shape, out.dtype)
    d_lse = None
    if draws.flip(0.3):
        d_lse = np.where(np.isfinite(lse), net_draws.normal(draws, lse.shape, lse.dtype), 0)
        d_lse = d_lse.astype(lse.dtype)
    before = judge.Kept([out, lse, d_out, cache.stats])
    found = functional.scaled_dot_product_attention_backward(
        d_out, cache, need_mask_grad=True, need_sink_grad=True, d_lse=d_lse
    )
    before.expect("after backward")
    kept.expect("after a call")
    wide = d_out.astype(np.float64).reshape(expected.out.shape)
    wide_lse = None if d_lse is None else d_lse.astype(np.float64).reshape(expected.lse.shape)
    grads = reference.attention_backward(expected, wide, d_lse=wide_lse)
    names = ("q", "k", "v")
    actual = {x: np.asarray(y) for x, y in zip(names, found, strict=False)}
    wanted = {x: getattr(grads, x).reshape(actual[x].shape) for x in names}
    mask = call.options.get("attn_mask")
    judge.expect((found[3] is None) == (mask is None or mask.dtype == bool), "gradient of a mask")
    if found[3] is not None:
        full = (*q.shape[:-1], k.shape[-2])
        actual["mask"] = found[3].astype(np.float64)
        wanted["mask"] = summed(grads.scores.reshape(full), mask.shape)
    if "sinks" in call.options:
        actual["sinks"], wanted["sinks"] = found[4], grads.sinks
    judge.all_near(actual, wanted, GRADIENT, _worse(call), dict.fromkeys(wanted, 10.0))
    if draws.flip(0.2):
        judge.same_bits(draws, lambda: [*run(call, d_out, d_lse)], q.dtype == BFLOAT16)


def _worse(call: Call) -> Any:
    return worst_of(
        [*call.inputs, *([call.options["attn_mask"]] if "attn_mask" in call.options else [])]
    )


def worst_of(arrays: list[Any]) -> Any:
    """The least exact floating type of some arrays, or types."""
    names = ("bfloat16", "float16", "float32", "float64")
    types = [getattr(x, "dtype", x).newbyteorder("=") for x in arrays if x is not None]
    return min((x for x in types if x.name in names), key=lambda x: names.index(x.name))


def summed(x: Any, shape: tuple[int, ...]) -> Any:
    """The gradient of what was broadcast."""
    columns = shape[-1] if shape and 1 < shape[-1] < x.shape[-1] else x.shape[-1]
    x = x[..., :columns]
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, a in enumerate(shape) if a == 1)
    return x.sum(axes, keepdims=True).reshape(shape)


def wrong(draws: Draws, call: Call) -> None:
    """A call with one argument in another's place is refused, or harmless."""
    names = ("query", "key", "value")
    arguments = dict(zip(names, call.inputs, strict=True)) | call.options
    name = draws.choice([*names, *names, "attn_mask", *call.options, "window", "key_lengths"])
    old = arguments.get(name)
    if name in ("key_lengths", "query_offset"):
        n, _, _, s = call.scores
        new = hostile.integers(draws, np.full(n, s))
    elif isinstance(old, np.ndarray):
        new = hostile.arrays_of(draws, old)
    else:
        new = hostile.anything(draws)
    arguments[name] = new
    judge.show("wrong:", name, repr(new)[:200])
    if isinstance(new, np.ndarray) and new.size > 1 << 24 and name != "value":
        pass  # shapes that do not fit cost nothing
    keep = [x for x in (*call.arrays, new) if isinstance(x, np.ndarray)]
    attend = functional.scaled_dot_product_attention
    certain = name in names and _misfit(old, new, name)
    if name == "attn_mask":
        certain = _mask_misfit(new, (*call.inputs[0].shape[:-1], call.inputs[1].shape[-2]))
    if certain:
        judge.must_refuse(lambda: attend(**arguments), keep, name)
    else:
        judge.refused(lambda: attend(**arguments), keep)


def _misfit(old: Any, new: Any, name: str) -> bool:
    if not isinstance(new, np.ndarray) or isinstance(new, np.ma.MaskedArray):
        return True
    shape = new.shape[:-1] == old.shape[:-1] if name == "value" else new.shape == old.shape
    return new.dtype.kind not in "fV" or new.ndim != old.ndim or not shape


def _mask_misfit(new: Any, scores: tuple[int, ...]) -> bool:
    if new is None:
        return False
    if not isinstance(new, np.ndarray) or isinstance(new, np.ma.MaskedArray):
        return True
    if new.dtype.kind not in "bfV":
        return True
    short = new.ndim and 1 < new.shape[-1] < scores[-1]
    shape = (*new.shape[:-1], scores[-1]) if short else new.shape
    lead = (1,) * (len(scores) - len(shape)) + shape
    return len(lead) > len(scores) or any(
        a not in (1, b) for a, b in zip(lead, scores, strict=True)
    )


def huge(draws: Draws) -> None:
    """Arrays that fit each other and no memory are refused at once."""
    size = draws.choice([2**33, 2**40, 2**46])
    dtype = draws.choice(["float32", "float64", "float16"])
    q, k = ((1, 1, 2, 4), (1, 1, 3, 4))
    way = draws.integers(4)
    axis = (2, 2, 3, 0)[way]
    q = tuple(size if i == axis and way != 1 else x for i, x in enumerate(q))
    k = tuple(size if i == axis and way != 0 else x for i, x in enumerate(k))
    if way == 3:
        size = max(size, 2**40)
        q, k = (size, 1, 2, 4), (size, 1, 3, 4)
    one = np.ones((), dtype)
    arrays = [np.broadcast_to(one, x) for x in (q, k, k)]
    judge.must_refuse(
        lambda: functional.scaled_dot_product_attention(*arrays), [one], f"huge {q} {k}"
    )


def spoiled_cache(draws: Draws, call: Call) -> None:
    """A cache with flipped bits gives other numbers, and does nothing else."""
    out, _, cache = run(call)
    for x in (
        cache.stats,
        cache.out,
        *([cache.rules.sinks] if cache.rules.sinks is not None else []),
    ):
        raw = x.view(np.uint8) if x.flags.c_contiguous and x.ndim and x.size else None
        if raw is not None:
            raw.reshape(-1)[draws.integers(raw.size)] ^= 1 << draws.integers(8)
    kept = judge.Kept([*call.arrays, cache.stats, out])
    functional.scaled_dot_product_attention_backward(out, cache, need_mask_grad=True)
    kept.expect("after backward with a spoiled cache")
    new = draws.choice([hostile.arrays_of(draws, out), hostile.anything(draws)])
    judge.show("wrong d_out:", repr(new)[:200])
    judge.refused(lambda: functional.scaled_dot_product_attention_backward(new, cache), call.arrays)
    bad = hostile.anything(draws)
    judge.must_refuse(
        lambda: functional.scaled_dot_product_attention_backward(out, bad), call.arrays, "cache"
    )


def one(draws: Draws) -> None:
    """One input."""
    way = draws.integers(32)
    if way == 0:
        return huge(draws)
    call = draw(draws)
    judge.show(
        [(x.shape, x.dtype, x.strides) for x in call.inputs], call.options.keys(), call.scores
    )
    if way < 20:
        right(draws, call)
    elif way < 29:
        wrong(draws, call)
    else:
        spoiled_cache(draws, call)
    return None
