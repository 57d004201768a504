"""A user's program beyond the calls of layers: what is kept, saved, drawn and looked up."""

from __future__ import annotations

from ctypes import c_size_t
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import multihead as mh
from multihead import bnns, checkpoint, reference
from multihead.functional import alibi_slopes, rotate

Floats = NDArray[np.float32]


def decoding(x: Floats) -> None:
    """A layer as today's models have it, its cache, and steps over it."""
    rope = mh.Rope(base=1e5)
    layer = mh.MultiheadAttention(
        8, 2, num_kv_heads=1, window=3, rope=rope, batch_first=True
    ).eval()
    cache = layer.new_kv_cache(3, 16)
    assert_type(cache, mh.KVCache)
    out, _ = layer(x, x, x, is_causal=True, kv_cache=cache, need_weights=False)
    assert_type(out, Floats)
    for length in cache.lengths.tolist():
        print(length)
    cache.truncate(2)


def training(layer: mh.MultiheadAttention, rate: float) -> None:
    """A step of gradient descent."""
    for name, parameter in layer.parameters().items():
        parameter -= rate * layer.grads[name]
    layer.zero_grad()


def files(layer: mh.MultiheadAttention, path: Path) -> mh.MultiheadAttention:
    """To a file and back."""
    checkpoint.save(layer, path)
    return checkpoint.load(path)


def oracle(layer: mh.MultiheadAttention, x: Floats) -> float:
    """How far the engine is from plain float64."""
    result = reference.forward(layer.parameters(), x, x, x, num_heads=layer.num_heads)
    out, _ = layer(x, x, x)
    return float(np.abs(out - result.out).max())


def functions(x: Floats) -> Floats:
    """Parts of attention by themselves."""
    print(sum(alibi_slopes(4)))
    return rotate(x, mh.Rope(8))


def threads() -> dict[str, Any]:
    """What the engine runs on."""
    mh.set_num_threads(max(1, mh.get_num_threads() // 2))
    return mh.show_config("dicts")


def apple(x: Floats, w: Floats, out: Floats) -> str:
    """Apple's functions, and why one failed."""
    side = bnns.MHAProjectionParameters(
        target_desc=bnns.NDArrayDescriptor.from_array(x, data=False),
        weights=bnns.NDArrayDescriptor.from_array(w, bnns.DataLayout.ThreeDLastMajor),
    )
    layer = bnns.LayerParametersMultiheadAttention(query=side, key=side, value=side, output=side)
    size = c_size_t()
    with bnns.Filter(layer) as made:
        status = bnns.BNNSApplyMultiheadAttention(
            *(made, 1, x, 0, x, 0, None, 0, x, 0, out, 0, None, size, None, None, None), raw=True
        )
    return bnns.last_error() if status else str(size.value)
