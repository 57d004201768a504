"""Ragged batches: of the layer, and packed sequences in attention alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import multihead as mh
import net_draws
from fuzz import functions, hostile, judge, layer, layer_calls
from fuzz.draws import Draws
from fuzz.layer_calls import BFLOAT16, Call
from multihead import functional, reference
from multihead.ragged import Ragged
from tolerance import FORWARD, GRADIENT


def spans_of(draws: Draws, n: int) -> list[int]:
    """Lengths of sequences, often 0."""
    most = draws.choice([3, 9, 9, 21, 70])
    spans = [draws.integers(0, most + 1) for _ in range(n)]
    if n and draws.flip(0.1):
        spans[draws.integers(n)] = draws.integers(256, 400)
    return spans


def steps_of(spans: list[int]) -> Any:
    """Where sequences begin."""
    return np.cumsum([0, *spans])


def pack(padded: Any, spans: list[int]) -> Any:
    """The tokens of (N, longest, ...) one after the other."""
    parts = [x[:length] for x, length in zip(padded, spans, strict=True)]
    return np.concatenate([padded[:0].reshape(0, *padded.shape[2:]), *parts])


def same(draws: Draws, spans: list[int], x: Any, steps: Any = None) -> Ragged[Any]:
    """A Ragged of the tokens in (N, longest, ...)."""
    offsets = steps_of(spans) if steps is None else steps
    if draws.flip(0.3):
        offsets = offsets.astype(draws.choice(["int32", "uint16", "uint64"]))
    return Ragged(hostile.placed(draws, pack(x, spans)), offsets)


def of_layer(draws: Draws) -> None:
    """The layer on ragged inputs is the layer on padded ones."""
    base = layer_calls.draw(draws)
    n = draws.integers(0, 6) if draws.flip(0.8) else draws.integers(6, 14)
    spans = [spans_of(draws, n) for _ in "qk"]
    one = base.inputs[0] is base.inputs[1]
    if one or draws.flip(0.3):
        spans[1] = spans[0]
    longest = [max(x, default=0) for x in spans]
    made, dtype = base.made, base.dtype
    kdim, vdim = made["kdim"] or made["embed_dim"], made["vdim"] or made["embed_dim"]
    query = net_draws.normal(draws, (n, longest[0], made["embed_dim"]), dtype)
    key = query if one else net_draws.normal(draws, (n, longest[1], kdim), dtype)
    value = (
        key
        if base.inputs[1] is base.inputs[2]
        else net_draws.normal(draws, (n, longest[1], vdim), dtype)
    )
    sizes = (n, made["num_heads"], *longest)
    options = base.options | {"attn_mask": None}
    options |= {k: v for k, v in layer_calls.masks(draws, sizes, dtype).items() if k == "attn_mask"}
    options.pop("key_padding_mask", None)
    if options["attn_mask"] is None:
        options.pop("attn_mask")
    d_out = net_draws.normal(draws, query.shape, dtype)
    unseen = np.arange(longest[0]) >= np.array(spans[0], int)[:, None]
    d_out[unseen] = 0
    call = Call(made, base.params, (query, key, value), options, d_out, None, dtype)
    padded = np.arange(longest[1]) >= np.array(spans[1], int)[:, None]
    whole = call._replace(options=options | {"key_padding_mask": padded})
    made_layer = mh.MultiheadAttention(**made, dtype=dtype, seed=0)
    made_layer.load_state_dict(base.params)
    state = made_layer.rng_state = (draws.word(), draws.integers(2**40))
    found: dict[int, Any] = {}
    for x, length in zip(call.inputs, (spans[0], spans[1], spans[1]), strict=True):
        found.setdefault(id(x), same(draws, length, x))
    inputs = [found[id(x)] for x in call.inputs]
    grad = same(draws, spans[0], d_out)
    judge.show(made, sizes, spans, dtype, list(options))
    kept = judge.Kept([*(x.values for x in inputs), grad.values, options.get("attn_mask")])

    def run() -> tuple[Any, Any, dict[str, Any]]:
        made_layer.zero_grad()
        made_layer.rng_state = state
        out, weights = made_layer(*inputs, **options)
        *three, d_mask, _ = made_layer.backward(grad, need_mask_grad=True)
        grads = {k: np.array(x) for k, x in made_layer.grads.items()}
        grads |= {k: x.values for k, x in zip(layer.NAMES, three, strict=True)}
        return out.values, weights, grads | ({} if d_mask is None else {"attn_mask": d_mask})

    out, weights, grads = run()
    kept.expect("after a ragged step")
    expected = layer_calls.oracle(whole, state)
    mask = options.get("attn_mask")
    types = [dtype, *([mask.dtype] if mask is not None and mask.dtype.kind == "f" else [])]
    worst = min(types, key=lambda x: ("bfloat16", "float16", "float32", "float64").index(x.name))
    judge.near(out, pack(expected.out, spans[0]), FORWARD, worst, "out", scale=1)
    wanted = dict(expected.grads)
    for name, length in zip(layer.NAMES, (spans[0], spans[1], spans[1]), strict=True):
        wanted[name] = pack(wanted[name], length)
    judge.all_near(grads, wanted, GRADIENT, worst, expected.sizes)
    if weights is not None:
        for i, x in enumerate(weights):
            keys = [*range(spans[1][i]), *range(longest[1], longest[1] + call.extra)]
            mine = expected.weights[i][..., : spans[0][i], :][..., keys]
            judge.near(x, mine, FORWARD, worst, f"weights[{i}]", scale=0.1)
    if draws.flip(0.2):

        def bits() -> list[Any]:
            out, weights, grads = run()
            return [out, *(weights or []), *(grads[k] for k in sorted(grads))]

        judge.same_bits(draws, bits, dtype == BFLOAT16)


def of_attention(draws: Draws) -> None:
    """Packed attention is attention of padded sequences."""
    dtype = draws.choice(functions.DTYPES)
    n = draws.integers(0, 6) if draws.flip(0.8) else draws.integers(6, 14)
    spans = [spans_of(draws, n) for _ in "qk"]
    if draws.flip(0.3):
        spans[1] = spans[0]
    elif n and draws.flip(0.3):  # steps of a decoder
        spans = [
            [draws.integers(0, 5) for _ in range(n)],
            [draws.integers(200, 300) for _ in range(n)],
        ]
    heads, group = draws.integers(1, 4), draws.choice([1, 1, 2, 3])
    d, dv = draws.integers(1, 18), draws.integers(1, 18)
    longest = [max(x, default=0) for x in spans]
    q = net_draws.normal(draws, (n, longest[0], heads * group, d), dtype)
    k = net_draws.normal(draws, (n, longest[1], heads, d), dtype)
    v = net_draws.normal(draws, (n, longest[1], heads, dv), dtype)
    scores = (n, heads * group, *longest)
    options: dict[str, Any] = {
        "is_causal": draws.flip(0.35),
        "enable_gqa": True,
        "seed": draws.word(),
    }
    options |= functions.rules_of(draws, scores)
    if draws.flip(0.3):
        options["dropout_p"] = draws.choice([0.1, 0.5])
    if draws.flip(0.4):
        options["attn_mask"] = functions.mask_of(draws, scores, np.dtype("float32"))
    ends = np.array(spans[1], np.int64)
    if "key_lengths" in options:
        ends = np.minimum(options["key_lengths"], ends)
        options["key_lengths"] = ends
    offset = options.get("query_offset", 0)
    if isinstance(offset, str):
        offset = ends - np.array(spans[0], np.int64)
    whole = options | {"key_lengths": ends, "query_offset": offset}
    swapped = tuple(x.swapaxes(1, 2) for x in (q, k, v))
    call = functions.Call(swapped, whole, scores)
    given = [
        same(draws, s, x) for s, x in zip((spans[0], spans[1], spans[1]), (q, k, v), strict=True)
    ]
    judge.show(spans, heads, group, d, dv, dtype, options.keys())
    d_out = net_draws.normal(draws, (n, longest[0], heads * group, dv), dtype)
    d_out[np.arange(longest[0]) >= np.array(spans[0], int)[:, None]] = 0
    grad = same(draws, spans[0], d_out)
    arrays = [x for x in options.values() if isinstance(x, np.ndarray)]
    kept = judge.Kept([*(x.values for x in given), grad.values, *arrays])

    def run() -> list[Any]:
        out, lse, cache = functional.scaled_dot_product_attention(
            *given, return_lse=True, return_cache=True, **options
        )
        plain = functional.scaled_dot_product_attention(*given, **options)
        found = functional.scaled_dot_product_attention_backward(
            grad, cache, need_mask_grad=True, need_sink_grad=True
        )
        return [out.values, lse.values, *(x.values for x in found[:3]), *found[3:], plain.values]

    out, lse, d_q, d_k, d_v, d_mask, d_sinks, plain = run()
    kept.expect("after packed attention")
    judge.expect(judge.bits([plain]) == judge.bits([out]), "another output without a cache")
    expected = functions.oracle(call)
    worst = functions.worst_of([dtype, *arrays])
    rows = pack(expected.out.swapaxes(1, 2), spans[0])
    judge.near(out, rows, FORWARD, worst, "out", scale=1)
    judge.near(lse, pack(expected.lse.swapaxes(1, 2), spans[0]), FORWARD, worst, "lse", scale=1)
    grads = reference.attention_backward(expected, d_out.swapaxes(1, 2).astype(np.float64))
    wanted = {
        name: pack(x.swapaxes(1, 2), s)
        for name, x, s in zip("qkv", grads[:3], (spans[0], spans[1], spans[1]), strict=True)
    }
    actual = {"q": d_q, "k": d_k, "v": d_v}
    if d_mask is not None:
        actual["mask"] = d_mask
        wanted["mask"] = functions.summed(grads.scores, options["attn_mask"].shape)
    if d_sinks is not None:
        actual["sinks"], wanted["sinks"] = d_sinks, grads.sinks
    judge.all_near(actual, wanted, GRADIENT, worst, dict.fromkeys(wanted, 10.0))
    if draws.flip(0.2):
        judge.same_bits(draws, run, dtype == BFLOAT16)


def wrong(draws: Draws) -> None:
    """Offsets that are none, and what does not go together."""
    n = draws.integers(0, 6)
    spans = spans_of(draws, n)
    steps, total = steps_of(spans), sum(spans)
    shape = (total, 6) if draws.flip() else (total, 2, 3)
    values = net_draws.normal(draws, shape, np.dtype("float32"))
    bad = hostile.integers(draws, steps)
    judge.show("offsets", repr(bad))
    made: list[Any] = []
    why = judge.refused(lambda: made.append(Ragged(values, bad)), [values, bad])
    if why is None:
        as_list = [int(x) for x in np.asarray(bad)]
        rises = all(a <= b for a, b in pairwise(as_list))
        judge.expect(as_list[0] == 0 and as_list[-1] == total and rises, f"{bad!r} was taken")
        made[0].to_padded(), made[0].to_list(), repr(made[0])
    x = Ragged(values, steps)
    other = made[0] if made and draws.flip() else draws.choice([values, hostile.anything(draws)])
    inputs = [x, x, x]
    inputs[draws.integers(3)] = other
    attend = functional.scaled_dot_product_attention
    one = mh.MultiheadAttention(6, 2, seed=0)
    call = draws.choice([lambda: attend(*inputs), lambda: one(*inputs)])
    judge.refused(call, [values])
    judge.refused(
        lambda: Ragged.from_list(draws.choice([[], [values, other], [other], inputs])), [values]
    )
    judge.refused(lambda: x[hostile.anything(draws)], [values], (*judge.CLEAN, IndexError))


def one(draws: Draws) -> None:
    """One input."""
    draws.choice([of_layer, of_layer, of_attention, of_attention, wrong])(draws)
