"""PyTorch's attention functions on the engine: dense, and packed sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import net_draws
from fuzz import functions, hostile, judge, ragged
from fuzz.draws import Draws
from fuzz.kv_caches import to_numpy, to_torch
from fuzz.torch_module import CLEAN, placed, strange
from multihead import reference
from multihead.torch import attention, scaled_dot_product_attention, varlen_attn
from tolerance import FORWARD, GRADIENT


def leaf(draws: Draws, x: Any, wanted: bool) -> torch.Tensor:
    """A tensor, perhaps with a gradient."""
    return placed(draws, to_torch(x.astype(x.dtype.newbyteorder("=")))).requires_grad_(wanted)


def dense(draws: Draws, spoiled: bool) -> None:
    """`scaled_dot_product_attention` beside the oracle."""
    call = functions.draw(draws)
    options = {
        k: x
        for k, x in call.options.items()
        if k in ("is_causal", "enable_gqa", "scale", "attn_mask")
    }
    q, k, v = call.inputs
    if k.dtype != q.dtype or not all(np.isfinite(x.astype(np.float64)).all() for x in (k, v)):
        return
    mask = options.get("attn_mask")
    if mask is not None and mask.ndim and mask.shape[-1] not in (1, k.shape[-2]):
        mask = None
        options.pop("attn_mask")
    if mask is not None and mask.ndim < 2:  # PyTorch's function has no such masks
        mask = options["attn_mask"] = np.broadcast_to(
            mask, (1, *mask.shape) if mask.ndim else (1, 1)
        )
    if mask is not None and mask.dtype != bool:
        mask = mask.astype(q.dtype.newbyteorder("="))
        options["attn_mask"] = mask
    if q.ndim < 3 and options["enable_gqa"]:
        return
    if options["is_causal"] and mask is not None:
        options["is_causal"] = False  # PyTorch's function refuses both
    wanted = draws.flip(0.8)
    made: dict[int, torch.Tensor] = {}
    for x in call.inputs:
        if id(x) not in made:
            made[id(x)] = leaf(draws, x, wanted)
    inputs = [made[id(x)] for x in call.inputs]
    how = dict(options)
    if mask is not None:
        how["attn_mask"] = leaf(draws, mask, mask.dtype != bool and draws.flip())
    judge.show([x.shape for x in call.inputs], q.dtype, options.keys(), spoiled)
    attend = scaled_dot_product_attention
    kept = judge.Kept([*inputs, how.get("attn_mask")])
    if spoiled:
        return wrong(draws, attend, dict(zip(("query", "key", "value"), inputs, strict=True)) | how)
    if draws.flip(0.3):
        with attention():
            out = torch.nn.functional.scaled_dot_product_attention(*inputs, **how)
    else:
        out = attend(*inputs, **how)
    expected = functions.oracle(call._replace(options=options))
    worst = functions.worst_of([q.dtype, *([mask] if mask is not None else [])])
    judge.near(
        to_numpy(out).reshape(expected.out.shape), expected.out, FORWARD, worst, "out", scale=1
    )
    if not out.requires_grad:
        return None
    d_out = net_draws.normal(draws, tuple(out.shape), q.dtype.newbyteorder("="))
    out.backward(placed(draws, to_torch(d_out)))
    kept.expect("after backward")
    grads = reference.attention_backward(
        expected, d_out.astype(np.float64).reshape(expected.out.shape)
    )
    total: dict[int, Any] = {}
    for x, name in zip(inputs, "qkv", strict=True):
        total[id(x)] = total.get(id(x), 0) + getattr(grads, name).reshape(tuple(x.shape))
    actual = {str(i): to_numpy(x.grad) for i, x in made.items() if x.grad is not None}
    want = {str(i): total[id(x)] for i, x in made.items() if x.grad is not None}
    tensor = how.get("attn_mask")
    if tensor is not None and tensor.grad is not None and mask is not None:
        full = (*q.shape[:-1], k.shape[-2])
        actual["mask"] = to_numpy(tensor.grad)
        want["mask"] = functions.summed(grads.scores.reshape(full), mask.shape)
    judge.all_near(actual, want, GRADIENT, worst, dict.fromkeys(want, 10.0))
    return None


def packed(draws: Draws, spoiled: bool) -> None:
    """`varlen_attn` beside the oracle of padded sequences."""
    dtype = draws.choice(functions.DTYPES)
    n = draws.integers(1, 6)
    spans = [ragged.spans_of(draws, n) for _ in "qk"]
    heads, group, d, dv = (draws.integers(1, x) for x in (4, 4, 18, 18))
    longest = [max(x, default=0) for x in spans]
    q = net_draws.normal(draws, (n, longest[0], heads * group, d), dtype)
    k = net_draws.normal(draws, (n, longest[1], heads, d), dtype)
    v = net_draws.normal(draws, (n, longest[1], heads, dv), dtype)
    left, right = draws.choice([(-1, -1), (-1, 0), (3, 3), (0, 70)])
    how: dict[str, Any] = {"window_size": (left, right), "enable_gqa": True}
    how["scale"] = draws.choice([None, 0.3])
    if draws.flip(0.3):
        how["softcap"] = draws.uniform(0.5, 5)
    rows = zip((q, k, v), (spans[0], spans[1], spans[1]), strict=True)
    inputs = [leaf(draws, ragged.pack(x, s), True) for x, s in rows]
    steps = [torch.tensor(ragged.steps_of(s), dtype=torch.int32) for s in spans]
    names = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
    arguments = dict(zip(names, (*inputs, *steps, *longest), strict=True)) | how
    judge.show(spans, heads, group, d, dv, dtype, how)
    if spoiled:
        return wrong(draws, varlen_attn, arguments)
    kept = judge.Kept(inputs)
    out = varlen_attn(**arguments)
    window = tuple(None if x < 0 else x for x in (left, right))
    ends, starts = (np.array(x, np.int64) for x in spans[::-1])
    options = {
        "enable_gqa": True,
        "key_lengths": ends,
        "query_offset": ends - starts,
        "window": window,
    }
    options |= {x: how[x] for x in ("scale", "softcap") if x in how}
    swapped = tuple(x.swapaxes(1, 2) for x in (q, k, v))
    call = functions.Call(swapped, options, (n, heads * group, *longest))
    expected = functions.oracle(call)
    rows_of = ragged.pack(expected.out.swapaxes(1, 2), spans[0])
    judge.near(to_numpy(out), rows_of, FORWARD, dtype, "out", scale=1)
    d_out = net_draws.normal(draws, (n, longest[0], heads * group, dv), dtype)
    d_out[np.arange(longest[0]) >= starts[:, None]] = 0
    out.backward(to_torch(ragged.pack(d_out, spans[0])))
    kept.expect("after backward")
    grads = reference.attention_backward(expected, d_out.swapaxes(1, 2).astype(np.float64))
    actual = {x: to_numpy(y.grad) for x, y in zip("qkv", inputs, strict=True)}
    three = zip("qkv", grads[:3], (spans[0], spans[1], spans[1]), strict=True)
    want = {x: ragged.pack(y.swapaxes(1, 2), s) for x, y, s in three}
    return judge.all_near(actual, want, GRADIENT, dtype, dict.fromkeys(want, 10.0))


def wrong(draws: Draws, attend: Any, arguments: dict[str, Any]) -> None:
    """A call with one argument in another's place is refused, or harmless."""
    name = draws.choice(list(arguments))
    old = arguments[name]
    if name.startswith("cu_seq") and draws.flip(0.8):
        new: Any = hostile.integers(draws, old.numpy().astype(np.int64))
        if isinstance(new, np.ndarray) and new.dtype.kind in "iuf" and new.dtype != np.uint64:
            new = torch.from_numpy(new.copy())
            new = new.to(torch.int32) if draws.flip() else new
    else:
        new = strange(draws, old) if isinstance(old, torch.Tensor) else hostile.anything(draws)
    if isinstance(new, torch.Tensor) and new.numel() > 1 << 24:
        return  # what is not ours PyTorch computes, for hours
    judge.show("wrong", name, repr(new)[:200])
    tensors = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
    kept = judge.Kept(tensors)
    certain = name in ("query", "key", "value", "cu_seq_q") and not isinstance(new, torch.Tensor)
    try:
        attend(**arguments | {name: new})
    except CLEAN as why:
        judge.expect(str(why), f"{type(why).__name__} says nothing")
    except Exception as why:
        judge.expect(
            pytorch_raises(attend, arguments | {name: new}, type(why)), f"unclean: {why!r}"
        )
    else:
        judge.expect(not certain, f"{name} was taken")
    kept.expect("after a call that is wrong")


def pytorch_raises(attend: Any, arguments: dict[str, Any], error: type[BaseException]) -> bool:
    """Whether PyTorch's own function raises the same error."""
    if attend is varlen_attn:
        return False
    try:
        torch.nn.functional.scaled_dot_product_attention(**arguments)
    except error:
        return True
    return False


def one(draws: Draws) -> None:
    """One input."""
    draws.choice([dense, dense, packed])(draws, draws.flip(0.3))
