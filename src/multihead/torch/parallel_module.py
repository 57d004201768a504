"""The layer over sequences of which each rank holds a part."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import linear

from multihead.checks import dims, wrong, wrong_type
from multihead.distributed import ContextParallel
from multihead.distributed.agreement import agree_all
from multihead.distributed.places import numbers_of_all, positions_of
from multihead.layer_rules import alibi_slopes
from multihead.reference.dropout import BIAS_KEY, dropout_mask
from multihead.torch.context_parallel import ShardedTensors, attend_sharded, drawn_seed
from multihead.torch.dispatch import transformed
from multihead.torch.eager import eager
from multihead.torch.rotation import angles_at, turned
from multihead.torch.tensors import HALF, readable


class ShardedCall(NamedTuple):
    """One call of a layer on this rank, batch first.

    Attributes
    ----------
    query, key, value : Tensor
        (N, L_r, E), (N, S_r, kdim), (N, S_r, vdim).
    padding : Tensor or None
        (N, S_r), of this rank's keys.
    mask : Tensor or None
        Rows of this rank's queries, a column for every key.
    causal : bool
    need_weights, kv_cache
        What a call may ask of a layer that is not shared.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    padding: torch.Tensor | None
    mask: torch.Tensor | None
    causal: Any
    need_weights: Any
    kv_cache: Any


class _Whole(NamedTuple):
    """What a rank has to know of the others.

    Attributes
    ----------
    length : int
        L or S, of all ranks, whichever is more.
    query, key : ndarray of int64
        Positions of this rank's tokens.
    """

    length: int
    query: Any
    key: Any


def refuse_beside_parallel(need_weights: bool, kv_cache: Any) -> None:
    """Raise for what a layer has not whose sequences are shared by ranks.

    Raises
    ------
    ValueError
    """
    if need_weights:
        way = "rows of weights over all keys grow with the square of the sequence"
        raise wrong("need_weights", f"False beside parallel(): {way}", True)
    if kv_cache is not None:
        raise wrong("kv_cache", "None beside parallel(): call parallel(None) before", "a cache")


@eager
def forward_sharded(module: Any, parallel: ContextParallel, call: ShardedCall) -> torch.Tensor:
    """Attend with the projections and options of a layer; all ranks call it together."""
    inputs = call.query, call.key, call.value
    batch_first = module.batch_first
    unbatched = isinstance(call.query, torch.Tensor) and call.query.dim() == 2
    _agree(module, parallel, call, batch_first or unbatched)

    # 1. Projections: (N, H, L_r, D) and (N, Hk, S_r, D).
    q, k, v = _projected(module, inputs)
    if not (batch_first or unbatched):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    if unbatched:
        q, k, v = (x[None] for x in (q, k, v))
        padding = None if call.padding is None else call.padding[None]
        call = call._replace(padding=padding)
    q, k, v = (x.unflatten(2, (-1, module.head_dim)).transpose(1, 2) for x in (q, k, v))

    # 2. Positions.
    rope, whole = module.rope, None
    counted = rope is not None or (module.bias_k is not None and _dropout(module))
    if counted or call.mask is not None:
        whole = _whole(parallel, (q.shape[2], k.shape[2]), call.mask)
    if rope is not None and whole is not None:
        q, k = (
            _turned(module, x, places, whole.length)
            for x, places in ((q, whole.query), (k, whole.key))
        )

    # 3. Masks: true = attend.
    mask = _merged(call, parallel, (q.shape[0], module.num_heads))

    # 4. Attention.
    rules = module._rules
    left, right = (None if side < 0 else side for side in rules.window)
    slopes = torch.tensor(alibi_slopes(module.num_heads)) if rules.alibi else None
    options = {
        "dropout_p": _dropout(module),
        "is_causal": bool(call.causal),
        "enable_gqa": module.num_kv_heads != module.num_heads,
        "window": None if left is right is None else (left, right),
        "softcap": rules.softcap or None,
        "alibi_slopes": slopes,
    }
    if module.bias_k is not None and options["dropout_p"]:  # whose key draws with it, too
        options["seed"] = drawn_seed(parallel)
    tensors = ShardedTensors(q, k, v, mask, _sinks(module))
    if module.bias_k is None:
        out = attend_sharded(tensors, parallel, options, False)
    else:
        out = _with_bias_key(module, tensors, options, whole, parallel)

    # 5. Heads side by side, and the last projection.
    out = out.transpose(1, 2).flatten(2)
    if not batch_first and not unbatched:
        out = out.transpose(0, 1)
    out = _last(module, out)
    found: torch.Tensor = out[0] if unbatched else out
    return found


def _agree(module: Any, parallel: ContextParallel, call: ShardedCall, batch_first: bool) -> None:
    """Check what this rank is given, and raise on all of them if it is wrong on one."""
    error: Exception | None = None
    said: dict[str, Any] = {}
    try:
        refuse_beside_parallel(call.need_weights, call.kv_cache)
        _check(module, call, batch_first)
        padding, mask = call.padding, call.mask
        said = {
            "key_padding_mask": None if padding is None else str(padding.dtype),
            "attn_mask": None if mask is None else str(mask.dtype),
            "is_causal": bool(call.causal),
            "training": module.training,
            "dropout": _dropout(module),
            "dtype": [str(x.dtype) for x in call[:3]],
            "sequences": _sequences(call.query, batch_first),
            "scheme": parallel.scheme,
            "sharding": parallel.sharding,
        }
    except Exception as found:
        error = found
    agree_all(parallel.communicators, said, error)


def _sequences(query: torch.Tensor, batch_first: bool) -> int:
    return 1 if query.dim() == 2 else query.shape[0 if batch_first else 1]


def _check(module: Any, call: ShardedCall, batch_first: bool) -> None:
    if transformed():
        raise wrong("query", "a call outside of function transforms and torch.jit.trace", "one in")
    names = ("query", "key", "value", "key_padding_mask", "attn_mask")
    for name, x in zip(names, call, strict=False):
        if x is None and name in names[3:]:
            continue
        if not isinstance(x, torch.Tensor):
            raise wrong_type(name, "a tensor", type(x).__name__)
        if x.is_nested or not readable(x):
            raise wrong(name, "a dense tensor in CPU memory", f"{type(x).__name__} on {x.device}")
    q, k, v = call.query.shape, call.key.shape, call.value.shape
    widths = (module.embed_dim, module.kdim, module.vdim)
    for name, shape, width in zip(names, (q, k, v), widths, strict=False):
        if len(shape) not in (2, 3) or len(shape) != len(q) or shape[-1] != width:
            order = ("N", "L", width) if module.batch_first else ("L", "N", width)
            raise wrong(name, f"{dims(*order)} or {dims('L', width)}", tuple(shape))
    if k[:-1] != v[:-1]:
        raise wrong("value", f"the tokens of key, {tuple(k[:-1])}", tuple(v[:-1]))
    batch = 0 if batch_first else 1
    n = _sequences(call.query, batch_first)
    if len(q) == 3 and k[batch] != n:
        raise wrong("key", f"a batch of {n}", tuple(k))
    if call.padding is not None:
        keys = k[0] if len(k) == 2 else k[1 - batch]
        shape = (keys,) if len(k) == 2 else (n, keys)
        if tuple(call.padding.shape) != shape:
            expected = f"{dims(*shape)}, of this rank's own keys"
            raise wrong("key_padding_mask", expected, tuple(call.padding.shape))
        if call.padding.requires_grad:
            raise wrong("key_padding_mask", "no gradient (attn_mask may have one)", "one")
    if call.mask is not None:
        rows = q[0] if len(q) == 2 else q[1 - batch]
        _check_mask(call.mask, n, module.num_heads, rows)


def _check_mask(mask: torch.Tensor, n: int, heads: int, rows: int) -> None:
    """Check all axes of a mask but its columns, which count the keys of all ranks."""
    given = tuple(mask.shape)
    if given[:-1] in ((rows,), (n * heads, rows)):
        return
    if len(given) == 4 and all(a in (1, b) for a, b in zip(given, (n, heads, rows), strict=False)):
        return
    ways = [dims(rows, "S"), dims(n * heads, rows, "S"), f"4-D that fits {dims(n, heads, rows)}"]
    raise wrong("attn_mask", f"{', '.join(ways)} for the keys of all ranks", given)


def _dropout(module: Any) -> float:
    return module.dropout if module.training else 0.0


def _projected(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Project query, key and value; one tensor that is all three, at once."""
    widths = [module.num_heads * module.head_dim, *[module.num_kv_heads * module.head_dim] * 2]
    bias = module.in_proj_bias
    query, key, value = inputs
    if module.in_proj_weight is not None and query is key is value:
        of_all: tuple[torch.Tensor, ...] = _linear(query, module.in_proj_weight, bias).split(
            widths, -1
        )
        return of_all
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.split(widths)
    biases = (None,) * 3 if bias is None else bias.split(widths)
    return tuple(map(_linear, inputs, weights, biases))


def _linear(x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    """Project in the dtype of an input of half precision."""
    if x.dtype in HALF and not torch.is_autocast_enabled("cpu"):
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    projected: torch.Tensor = linear(x, weight, bias)
    return projected


def _last(module: Any, x: torch.Tensor) -> torch.Tensor:
    m = module.out_proj
    if module._out_proj_is_custom():
        called: torch.Tensor = m(x)
        return called
    return _linear(x, m.weight, m.bias)


def _whole(parallel: ContextParallel, held: tuple[int, int], mask: torch.Tensor | None) -> _Whole:
    """Tell the other ranks how much this one holds, and check the columns of all masks."""
    columns = 0 if mask is None else mask.shape[-1]
    told = numbers_of_all(parallel, (*held, columns))
    keys = int(told[:, 1].sum())
    for rank, found in enumerate(told[:, 2].tolist()):
        if mask is not None and found != keys and not (found == 1 and mask.dim() == 4):
            expected = f"a column for each of {keys} keys of all ranks"
            raise wrong("attn_mask", expected, f"{found} on rank {rank}")
    places = (positions_of(parallel, told[:, i], name) for i, name in enumerate(("query", "key")))
    return _Whole(int(told[:, :2].sum(0).max()), *places)


def _turned(module: Any, x: torch.Tensor, places: Any, length: int) -> torch.Tensor:
    """Turn the heads of tokens by the angles of their positions, in the dtype computed in."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    cosine, sine = angles_at(module.rope, module.head_dim, places, length, wide)
    interleaved = module.rope.layout == "interleaved"
    return turned(x.to(wide), cosine, sine, interleaved).to(x.dtype)


def _merged(
    call: ShardedCall, parallel: ContextParallel, sizes: tuple[int, int]
) -> torch.Tensor | None:
    """Return one mask of both, as `attend_sharded` takes it; padding comes from all ranks."""
    mask, padding = call.mask, call.padding
    if mask is not None:
        if mask.dim() < 4:
            mask = mask[None, None] if mask.dim() == 2 else mask.unflatten(0, sizes)
        mask = ~mask if mask.dtype == torch.bool else mask
    if padding is None:
        return mask
    whole: torch.Tensor = parallel.gather(padding.contiguous(), axis=1)[:, None, None]
    whole = ~whole if whole.dtype == torch.bool else whole
    if mask is None:
        return whole
    if mask.dtype == whole.dtype == torch.bool:
        return mask & whole
    return _added(mask) + _added(whole)


def _added(mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask


def _sinks(module: Any) -> torch.Tensor | None:
    """Return the scores that have no values: those of sinks, and the zero row's, which is 0."""
    sinks: torch.Tensor | None = module.sinks if module._has_sinks else None
    if not module.add_zero_attn:
        return sinks
    if sinks is None:
        return torch.zeros(module.num_heads, device="cpu")
    return sinks.logaddexp(torch.zeros_like(sinks))


def _with_bias_key(
    module: Any,
    tensors: ShardedTensors,
    options: dict[str, Any],
    whole: _Whole | None,
    parallel: ContextParallel,
) -> torch.Tensor:
    """Attend with one more key that every query sees: `bias_k`, whose value is `bias_v`."""
    out, lse = attend_sharded(tensors, parallel, options, True)
    q, group = tensors.query, module.num_heads // module.num_kv_heads
    key, value = (
        x.to(lse.dtype).reshape(-1, module.head_dim).repeat_interleave(group, 0)[:, None]
        for x in (module.bias_k, module.bias_v)
    )
    scores = (q.to(lse.dtype) * key).sum(-1) / math.sqrt(module.head_dim)
    if options["softcap"]:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    weights = torch.sigmoid(scores - lse)[..., None]
    out = out.to(lse.dtype) * (1 - weights)
    if options["dropout_p"] and whole is not None:
        n, heads = (np.arange(size) for size in q.shape[:2])
        at = (n, heads, whole.query, [BIAS_KEY])
        keep, factor = dropout_mask(options["seed"], 0, *at, options["dropout_p"])
        weights = weights * torch.from_numpy(keep) * factor
    return (out + weights * value).to(q.dtype)
