"""The two masks of a layer as the one that sharded attention takes, and their gradients apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from multihead.arrays import Array
from multihead.distributed.context_parallel import ContextParallel
from multihead.masks import Mask


class LayerMasks(NamedTuple):
    """What a call has of masks.

    Attributes
    ----------
    padding : Mask or None
        (N, S_r): of this rank's keys.
    whole : ndarray (N, S) or None
        Of all keys.
    attn : Mask or None
        Rows of this rank's queries; of packed sequences all.
    """

    padding: Mask | None
    whole: Array | None
    attn: Mask | None

    @property
    def hidden(self) -> Array | None:
        """Which keys of this rank are not to be read, (N, S_r), if there are any."""
        if self.padding is None:
            return None
        array = self.padding.array
        hidden: Array = array if array.dtype == np.bool_ else np.isneginf(array)
        return hidden if hidden.any() else None

    def joined(self, scores: tuple[int, int]) -> Array | None:
        """Return the mask of `ring_attention`: bool, **True = attend**, or floats to add.

        It has four axes, those of N, heads and queries of size 1 where all are alike. `scores` are
        N and H.
        """
        attn = None if self.attn is None else _with_heads(self.attn.array, scores)
        if self.whole is None:
            return attn if attn is None or attn.dtype != np.bool_ else ~attn
        padding = self.whole[:, None, None, :]
        if attn is None:
            return ~padding if padding.dtype == np.bool_ else padding
        if attn.dtype == padding.dtype == np.bool_:
            return ~(attn | padding)
        compute = padding.dtype if attn.dtype == np.bool_ else attn.dtype
        attn, padding = (_added(x, compute) for x in (attn, padding))
        with np.errstate(over="ignore", invalid="ignore"):
            total = attn + padding
        hidden, limit = np.isneginf(attn) | np.isneginf(padding), np.finfo(compute)
        joined: Array = np.where(hidden, -np.inf, np.maximum(total, limit.min)).astype(compute)
        return joined

    def gradients(
        self, parallel: ContextParallel, d_joined: Array | None, shared: bool, keys: Array
    ) -> tuple[Any, Any]:
        """Return the gradients of attn_mask and key_padding_mask, None where they are not floats.

        `d_joined` is that of `joined`: the sum over all ranks where that is `shared`. `keys` are
        the positions of this rank's.
        """
        d_attn = d_padding = None
        if d_joined is None:
            return None, None
        if self.attn is not None and self.attn.gradient is not None:
            shape = self.attn.array.shape
            like = shape if len(shape) == 4 else (1, 1, *shape[-2:])
            alone = len(shape) == 3
            d_attn = d_joined if alone else _sum_to(d_joined, like)
            d_attn = self.attn.gradient.finish(d_attn.reshape(shape))
        if self.padding is not None and self.padding.gradient is not None:
            total = d_joined.sum(axis=(1, 2), dtype=np.float64)
            if not shared:
                parallel.sum(total)
            own = total[:, keys].astype(d_joined.dtype)
            d_padding = self.padding.gradient.finish(own)
        return d_attn, d_padding


def _with_heads(mask: Array, scores: tuple[int, int]) -> Array:
    """Give a mask (L, S), (N * H, L, S) or of four axes all four."""
    if mask.ndim == 4:
        return mask
    lead = scores if mask.ndim == 3 else (1, 1)
    return mask.reshape(*lead, *mask.shape[-2:])


def _added(mask: Array, compute: np.dtype[Any]) -> Array:
    """Return a mask of a layer as the floats to add."""
    if mask.dtype != np.bool_:
        return mask
    added: Array = np.where(mask, compute.type(-np.inf), compute.type(0))
    return added


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes in which `shape` is broadcast."""
    axes = tuple(i for i, (own, full) in enumerate(zip(shape, x.shape, strict=True)) if own != full)
    total: Array = x.sum(axis=axes, keepdims=True)
    return total
