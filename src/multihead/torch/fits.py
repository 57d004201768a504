"""Which calls of the layer the engine computes: what PyTorch would refuse is left to PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from multihead.arguments import LayerTensors
from multihead.torch.nested import longest, same_lengths
from multihead.torch.sizes import broadcasts, same, same_shape
from multihead.torch.tensors import COMPUTED, HALF, NARROW, readable


def compute_dtype(
    module: torch.nn.MultiheadAttention,
    inputs: tuple[Any, Any, Any],
    tensors: LayerTensors,
    need_weights: bool,
) -> torch.dtype | None:
    """Return the dtype that the engine computes this call in; None if it does not.

    Parameters
    ----------
    module : torch.nn.MultiheadAttention
    inputs : tuple
        Query, key and value as they are given, whatever they are.
    tensors : LayerTensors
    need_weights : bool
    """
    query, key, value = inputs
    _, own_key, own_value, padding, mask, *params = tensors
    for x in (query, own_key, own_value, padding, mask):
        if x is not None and not isinstance(x, torch.Tensor):
            return None
    if query is None or key is None or value is None:
        return None
    if not isinstance(module.dropout, (int, float)) or not 0 <= module.dropout <= 1:
        return None
    dtype = taken = query.dtype
    accepted: tuple[torch.dtype, ...] = (dtype,)
    of_params = accepted
    if torch.is_autocast_enabled("cpu") and dtype in NARROW:
        taken = torch.get_autocast_dtype("cpu")
        accepted = of_params = NARROW
    elif dtype in HALF:
        of_params = (dtype, torch.float32)
    if taken not in COMPUTED and taken not in HALF:
        return None
    for x in (query, own_key, own_value):  # each once
        if x is not None and (x.dtype not in accepted or not readable(x)):
            return None
    for x in params:
        if x is not None and (x.dtype not in of_params or not readable(x)):
            return None
    scores = _scores(module, query, key, value)
    if scores is None or not _params_fit(module, tensors):
        return None
    if dtype in HALF and not need_weights:
        accepted = (*accepted, torch.float32)
    for x in (padding, mask):
        if x is None:
            continue
        if x.dtype != torch.bool and x.dtype not in accepted:
            return None
        if not readable(x):
            return None
    if padding is not None and not _padding_fits(padding, scores, query):
        return None
    if mask is not None and not _mask_fits(mask, scores):
        return None
    return taken


def _params_fit(module: Any, t: LayerTensors) -> bool:
    """Whether the parameters have the shapes that the module was made with."""
    e, heads = module.embed_dim, module.num_heads
    if heads <= 0 or module.num_kv_heads <= 0 or heads % module.num_kv_heads:
        return False
    q, k = heads * module.head_dim, module.num_kv_heads * module.head_dim
    if module._qkv_same_embed_dim:
        if t.in_weight is None or t.in_weight.shape != (3 * e, e) or q != e:
            return False
    elif t.in_weight is not None or not all(
        x is not None and x.shape == shape
        for x, shape in zip(
            (t.q_weight, t.k_weight, t.v_weight),
            ((q, e), (k, module.kdim), (k, module.vdim)),
            strict=True,
        )
    ):
        return False
    if (t.bias_k is None) != (t.bias_v is None):
        return False
    shapes: Any = [(t.in_bias, (q + 2 * k,)), (t.bias_k, (1, 1, k)), (t.bias_v, (1, 1, k))]
    shapes += [(t.out_weight, (e, q)), (t.out_bias, (e,)), (t.sinks, (heads,))]
    return all(x is None or x.shape == shape for x, shape in shapes)


def _scores(module: Any, query: Any, key: Any, value: Any) -> tuple[int, ...] | None:
    """Return the shape (N, H, L, S) of the scores; None if the inputs do not fit."""
    if query.is_nested or key.is_nested or value.is_nested:
        return _nested_scores(module, query, key, value)
    q = query.shape
    k = q if key is query else key.shape
    v = k if value is key else value.shape
    rank = len(q)
    if len(k) != rank or len(v) != rank or rank not in (2, 3):
        return None
    if not same_shape((q[-1], k[-1], v[-1]), (module.embed_dim, module.kdim, module.vdim)):
        return None
    if value is not key and not same_shape(k[:-1], v[:-1]):
        return None
    if rank == 2:
        return 1, module.num_heads, q[0], k[0]
    batch, tokens = (0, 1) if module.batch_first else (1, 0)
    if key is not query and not same(k[batch], q[batch]):
        return None
    return q[batch], module.num_heads, q[tokens], k[tokens]


def _nested_scores(module: Any, query: Any, key: Any, value: Any) -> tuple[int, ...] | None:
    three = (query, key, value)
    if not module.batch_first or not all(x.is_nested and x.dim() == 3 for x in three):
        return None
    widths = module.embed_dim, module.kdim, module.vdim
    if not same_shape([x.size(-1) for x in three], widths):
        return None
    if len({x.size(0) for x in three}) != 1:
        return None
    if value is not key and not same_lengths(key, value):
        return None
    if torch.compiler.is_compiling():  # lengths are not known: no masks
        return query.size(0), module.num_heads, -1, -1
    return query.size(0), module.num_heads, longest(query), longest(key)


def _padding_fits(padding: torch.Tensor, scores: tuple[int, ...], query: torch.Tensor) -> bool:
    n, _, _, source = scores
    if query.is_nested:
        return False
    return same_shape(padding.shape, (source,) if query.dim() == 2 else (n, source))


def _mask_fits(mask: torch.Tensor, scores: tuple[int, ...]) -> bool:
    n, heads, length, source = scores
    if mask.dim() == 4:
        return broadcasts(mask.shape, scores)
    return mask.dim() in (2, 3) and same_shape(
        mask.shape, (length, source) if mask.dim() == 2 else (n * heads, length, source)
    )


def refuse_arrays(inputs: tuple[Any, Any, Any]) -> None:
    """Say which input is no tensor: PyTorch's error names none.

    Raises
    ------
    TypeError
        If one is an array of NumPy's.
    """
    for name, x in zip(("query", "key", "value"), inputs, strict=True):
        if isinstance(x, np.ndarray):
            raise TypeError(f"{name}: expected a tensor, got ndarray (torch.from_numpy({name}))")


def explain_mask(module: Any, query: Any, key: Any, mask: Any) -> None:
    """Say how a mask for each sequence, or for each head, is taken: PyTorch's error does not.

    Raises
    ------
    RuntimeError
        If `mask` is (N, L, S) or (H, L, S), and not what PyTorch takes.
    """
    tensors = all(isinstance(x, torch.Tensor) for x in (query, key, mask))
    if not tensors or mask.dim() != 3 or query.dim() != 3 or key.dim() != 3 or query.is_nested:
        return
    batch, tokens = (0, 1) if module.batch_first else (1, 0)
    n, heads = query.shape[batch], module.num_heads
    rows = query.shape[tokens], key.shape[tokens]
    of = {"attn_mask[:, None] of each sequence": n, "attn_mask[None] of each head": heads}
    ways = [way for way, size in of.items() if mask.shape[0] == size]
    if mask.shape[0] == n * heads or not ways or tuple(mask.shape[1:]) != rows:
        return
    raise RuntimeError(
        f"attn_mask: expected (L, S) = {rows}, (N * H, L, S) = {(n * heads, *rows)}, or four axes "
        f"broadcastable to (N, H, L, S) = {(n, heads, *rows)}, got {tuple(mask.shape)}: pass "
        + " or ".join(ways)
    )
