"""Results of attention over parts of the keys, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multihead import _native
from multihead.arrays import borrow, dtype_name, element_of, read, restore
from multihead.checks import wrong, wrong_type
from multihead.masks import fold
from multihead.memory import new_array


def merge_attention(outs: Sequence[Any], lses: Sequence[Any]) -> tuple[Any, Any]:
    """Merge the results of attention over disjoint parts of the keys.

    Parameters
    ----------
    outs : sequence of array of shape (..., L, Dv)
        What `scaled_dot_product_attention` returned for each part, of one dtype.
    lses : sequence of array of shape (..., L)
        What it returned with ``return_lse=True``: -inf where a query saw no key of a part. In the
        dtype computed in, so float32 for float16 and bfloat16.

    Returns
    -------
    out : array of shape (..., L, Dv)
        As over all keys at once, up to rounding; of the kind and dtype of the first part. The
        parts are added in the order in which they are given.
    lse : array of shape (..., L)

    Raises
    ------
    ValueError
        If there are no parts, not one `lse` for each, or shapes differ.
    TypeError
        If an argument is no array, or dtypes differ.

    Notes
    -----
    ``lse = log(sum(exp(lses)))`` and ``out = sum(exp(lses - lse) * outs)``: Dao et al.,
    "FlashAttention" (2022).

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.functional import merge_attention, scaled_dot_product_attention
    >>> q, k = np.eye(4)[None, None], np.arange(24.0).reshape(1, 1, 6, 4)
    >>> halves = k[..., :2, :], k[..., 2:, :]
    >>> parts = [scaled_dot_product_attention(q, x, x, return_lse=True) for x in halves]
    >>> out, lse = merge_attention(*zip(*parts))
    >>> np.allclose(out, scaled_dot_product_attention(q, k, k))
    True
    """
    if not isinstance(outs, Sequence) or not isinstance(lses, Sequence):
        raise wrong_type("outs, lses", "two sequences of arrays", type(outs).__name__)
    if len(outs) == 0 or len(outs) != len(lses):
        raise wrong("lses", f"{max(len(outs), 1)} arrays, one for each of outs", len(lses))
    array, kind = borrow("outs[0]", outs[0])
    element = element_of(dtype_name(array, kind), "outs[0]")
    wide = element_of(element.compute)
    arrays = [read(f"outs[{i}]", x, element)[0] for i, x in enumerate(outs)]
    rows = [read(f"lses[{i}]", x, wide)[0] for i, x in enumerate(lses)]
    shape = arrays[0].shape
    if len(shape) < 2:
        raise wrong("outs[0]", "(..., L, Dv)", shape)
    for i, (x, lse) in enumerate(zip(arrays, rows, strict=True)):
        if x.shape != shape:
            raise wrong(f"outs[{i}]", shape, x.shape)
        if lse.shape != shape[:-1]:
            raise wrong(f"lses[{i}]", shape[:-1], lse.shape)
    out = new_array("out", shape, element.stored)
    total = new_array("lse", shape[:-1], element.compute)
    folded = fold(shape)
    _native.merge_attention(
        tuple(x.reshape(folded) for x in arrays),
        tuple(lse.reshape(folded[:-1]) for lse in rows),
        out.reshape(folded),
        total.reshape(folded[:-1]),
    )
    kind = kind._replace(dtype=element.compute if not element.half else kind.dtype)
    return restore(out, kind), total if kind.from_dlpack is None else kind.from_dlpack(total)
