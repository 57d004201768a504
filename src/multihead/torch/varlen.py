"""`torch.nn.attention.varlen.varlen_attn` on the engine: sequences one after another, unpadded."""

from __future__ import annotations

import math
from typing import Any

import torch

from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.checks import dims, number, wrong, wrong_type
from multihead.score_rules import Asked
from multihead.torch.calls import AttentionCall
from multihead.torch.dispatch import compute, traced
from multihead.torch.functional import WAYS, WITH_STATISTIC
from multihead.torch.rules import with_rules
from multihead.torch.sizes import same
from multihead.torch.symbolic import as_leaf, is_symbolic
from multihead.torch.tensors import COMPUTED, HALF, NAMES, NARROW, readable

_PAGES = (
    "None (pages are not read in place: gather them by key[block_table].flatten(0, 2), value "
    "likewise, with cu_seq_k = arange(N + 1) * block_table.shape[1] * key.shape[1])"
)


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> Any:
    """Compute attention within each of some sequences, which lie one after another.

    The parameters up to `num_splits` are those of `torch.nn.attention.varlen.varlen_attn`, which
    has no kernel for CPUs. Tensors that are not in CPU memory go to that function, unless a keyword
    asks for what it has not.

    Parameters
    ----------
    query : Tensor
        (Tq, H, D), of float32, float64, float16 or bfloat16.
    key, value : Tensor
        (Tk, H, D) and (Tk, H, Dv); with `enable_gqa` of fewer heads. Any strides.
    cu_seq_q, cu_seq_k : Tensor
        int32 or int64, (N + 1,): sequence n has the queries from ``cu_seq_q[n]`` to
        ``cu_seq_q[n + 1]``. They rise from 0 to Tq and Tk.
    max_q, max_k : int
        The greatest lengths. They are not read here: `cu_seq_q` and `cu_seq_k` say them.
    return_aux : AuxRequest, optional
        Where its ``lse`` is true, that is returned, too.
    scale : float, optional
        ``1 / sqrt(D)`` by default.
    window_size : tuple of two int
        Keys that a query sees before and after its own place, -1: all. The last query of a sequence
        stands on its last key. (-1, 0) is causal.
    enable_gqa : bool
        Whether there may be fewer heads of key and value, each for a group of query's.
    seqused_k : Tensor, optional
        Integers (N,): keys of a sequence from there on do not exist, and are never read. It may be
        given in training, too.
    block_table : Tensor, optional
        Not supported; the error says how to gather the pages.
    num_splits : int, optional
        It changes nothing: a sequence has the same bits whatever the others are.
    dropout_p : float
        Probability of dropping a weight; one seed is drawn from PyTorch's generator.
    softcap : float, optional
        Scaled scores s become ``softcap * tanh(s / softcap)``.
    alibi_slopes : Tensor (H,) or (N, H), optional
        Scores lose ``slope * |position of query - position of key|``. It has no gradient.
    sinks : Tensor (H,), optional
        A score of each head that joins the softmax and has no value.

    Returns
    -------
    out : Tensor
        (Tq, H, Dv). A query that sees no key gets zeros.
    lse : Tensor
        With `return_aux`: (H, Tq), as PyTorch's function returns it; float32, or float64 where that
        is computed in; -inf where a query sees no key. It is differentiable.

    Raises
    ------
    ValueError
        If a shape does not fit or offsets do not rise.
    TypeError
        If dtypes differ, or are not the engine's.

    Notes
    -----
    Gradients have gradients, in memory that grows with the square of a sequence's length.

    Examples
    --------
    >>> import torch
    >>> from multihead.torch import varlen_attn
    >>> q, k, v = torch.randn(3, 9, 2, 8, requires_grad=True).unbind()
    >>> ends = torch.tensor([0, 4, 9], dtype=torch.int32)
    >>> out = varlen_attn(q, k, v, ends, ends, 5, 5, window_size=(-1, 0))
    >>> out.sum().backward()
    >>> tuple(out.shape)
    (9, 2, 8)
    """
    inputs = (query, key, value)
    options: dict[str, Any] = {
        "return_aux": return_aux,
        "scale": scale,
        "window_size": window_size,
        "enable_gqa": enable_gqa,
        "seqused_k": seqused_k,
        "block_table": block_table,
        "num_splits": num_splits,
    }
    more = {"softcap": softcap, "alibi_slopes": alibi_slopes, "sinks": sinks}
    sizes = (cu_seq_q, cu_seq_k, max_q, max_k)
    if is_symbolic(inputs):
        return as_leaf(varlen_attn, (*inputs, *sizes), options | more | {"dropout_p": dropout_p})
    extended = bool(dropout_p) or any(x is not None for x in more.values())
    if not extended and isinstance(query, torch.Tensor) and query.device.type != "cpu":
        return _elsewhere(*inputs, *sizes, **options)
    if block_table is not None:
        raise wrong("block_table", _PAGES, tuple(block_table.shape))
    _check(inputs, enable_gqa)
    dtype = _dtype(inputs)
    of_queries = _offsets("cu_seq_q", cu_seq_q, query.shape[0])
    of_keys = of_queries
    if cu_seq_k is not cu_seq_q:
        of_keys = _offsets("cu_seq_k", cu_seq_k, key.shape[0])
        if not same(of_keys.shape[0], of_queries.shape[0]):
            raise wrong("cu_seq_k", dims(int(of_queries.shape[0])), tuple(of_keys.shape))
    elif not same(key.shape[0], query.shape[0]):
        raise wrong("key", dims(query.shape[0], "H", "D"), tuple(key.shape))
    left, right = (None if x < 0 else x for x in _pair(window_size))
    limited = left is not None or right is not None or alibi_slopes is not None
    apart = cu_seq_k is not cu_seq_q or seqused_k is not None
    window = None if left is right is None else (left, right)
    offset = "end" if limited and apart else None
    rules = Asked(window, offset, seqused_k, softcap, alibi_slopes, sinks)
    factor = 1 / math.sqrt(max(query.shape[2], 1)) if scale is None else number("scale", scale)
    engine = AttentionOptions(NAMES[dtype], False, factor, float(dropout_p), None)
    tensors = AttentionTensors(*inputs, query_offsets=of_queries, key_offsets=of_keys)
    call = AttentionCall(tensors, engine)
    if rules:
        call = with_rules(call, rules)
    if return_aux is not None and return_aux.lse:
        out, lse = compute(call, WITH_STATISTIC)
        return out, lse.t()
    return compute(call, WAYS)


def _elsewhere(*arguments: Any, **options: Any) -> Any:
    """Call PyTorch's function, where it has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn as theirs
    except ImportError:
        raise wrong("query", "a tensor in CPU memory", f"one on {arguments[0].device}") from None
    return theirs(*arguments, **options)


def _pair(window_size: Any) -> tuple[int, int]:
    if len(window_size) != 2:
        raise wrong("window_size", "(left, right)", window_size)
    left, right = window_size
    return left, right


def _check(inputs: tuple[torch.Tensor, ...], grouped: bool) -> None:
    """Check what query, key and value are, or raise."""
    for name, x in zip(("query", "key", "value"), inputs, strict=True):
        if not isinstance(x, torch.Tensor):
            raise wrong_type(name, "a tensor", type(x).__name__)
        if x.dim() != 3:
            raise wrong(name, dims("total", "H", "Dv" if name == "value" else "D"), tuple(x.shape))
        if not readable(x):
            kind = type(x).__name__
            raise wrong(name, "a plain tensor in CPU memory", f"a {kind} on {x.device}")
    query, key, value = inputs
    (_, heads, width), key_heads = query.shape, key.shape[1]
    if not grouped and key_heads != heads:
        way = " (enable_gqa=True lets fewer heads of keys serve groups of query heads)"
        raise wrong("key", dims("Tk", heads, width), f"{tuple(key.shape)}{way}")
    if grouped and (key_heads < 1 or heads % key_heads):
        raise wrong("key", f"a number of heads that divides {heads}", key_heads)
    if key.shape[2] != width:
        raise wrong("key", dims("Tk", key_heads, width), tuple(key.shape))
    if not same(value.shape[0], key.shape[0]) or value.shape[1] != key_heads:
        raise wrong("value", dims(key.shape[0], key_heads, "Dv"), tuple(value.shape))


def _dtype(inputs: tuple[torch.Tensor, ...]) -> torch.dtype:
    """Return what is computed in: the dtype of all, or autocast's."""
    dtype = inputs[0].dtype
    accepted: tuple[torch.dtype, ...] = (dtype,)
    if torch.is_autocast_enabled("cpu") and dtype in NARROW:
        autocast = torch.get_autocast_dtype("cpu")
        if autocast in NARROW:
            dtype, accepted = autocast, NARROW
    if dtype not in COMPUTED and dtype not in HALF:
        raise wrong_type("query", "float32, float64, float16 or bfloat16", _short(dtype))
    for name, x in zip(("key", "value"), inputs[1:], strict=True):
        if x.dtype not in accepted:
            raise wrong_type(name, _short(inputs[0].dtype), _short(x.dtype))
    return dtype


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _offsets(name: str, x: Any, total: Any) -> torch.Tensor:
    """Return where sequences begin as the engine reads it; while PyTorch traces that checks it."""
    if not isinstance(x, torch.Tensor):
        raise wrong_type(name, "a tensor of integers (N + 1,)", type(x).__name__)
    if x.dtype not in (torch.int32, torch.int64):
        raise wrong_type(name, "int32 or int64", _short(x.dtype))
    if x.dim() != 1 or x.shape[0] == 0:
        raise wrong(name, dims("N + 1"), tuple(x.shape))
    if x.device.type != "cpu":
        raise wrong(name, "a tensor in CPU memory", f"one on {x.device}")
    if not traced() and readable(x):
        ends = x.tolist()
        if ends[0] != 0 or ends[-1] != total or sorted(ends) != ends:
            raise wrong(name, f"a rising run from 0 to {total}", ends)
    return x.to(torch.int64).contiguous()
