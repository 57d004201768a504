"""What one training call of the layer leaves for backward."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, TypeAlias

from multihead import _native
from multihead.arrays import Array
from multihead.checks import wrong
from multihead.layouts import Dense, RaggedBatch
from multihead.masks import Mask
from multihead.memory import new_array

MaskArrays: TypeAlias = tuple[Array | None, Array | None]


class LayerCache(NamedTuple):
    """A training call: its inputs by reference, its options and what the engine kept.

    `masks` are key_padding_mask and attn_mask; `average` is None for a call without weights.
    """

    owner: object
    batch: Dense | RaggedBatch
    masks: tuple[Mask | None, Mask | None]
    is_causal: bool
    dropout: tuple[float, int, int]
    average: bool | None
    native: _native.Cache

    def __repr__(self) -> str:
        return f"LayerCache(query={self.batch.shapes[0]}, key={self.batch.shapes[1]})"

    @property
    def mask_arrays(self) -> MaskArrays:
        """The masks as the engine takes them, padding first."""
        padding, attn = self.masks
        return padding and padding.array, attn and attn.array

    def new_mask_gradients(self, needed: bool) -> MaskArrays:
        """Make the gradients of the float masks, as the engine writes them."""
        if not needed:
            return None, None
        compute = self.batch.element.compute
        padding, attn = (
            new_array("d_mask", mask.gradient.engine_shape, compute)
            if mask is not None and mask.gradient is not None
            else None
            for mask in self.masks
        )
        return padding, attn

    def finish_mask_gradients(self, arrays: MaskArrays) -> tuple[Any, Any]:
        """Return the gradients of attn_mask and key_padding_mask as the caller's kinds."""
        padding, attn = (
            mask.gradient.finish(array)
            if mask is not None and mask.gradient is not None and array is not None
            else None
            for mask, array in zip(self.masks, arrays, strict=True)
        )
        return attn, padding


NO_CALL = (
    "this thread has not called the layer: call layer(...) first; cache= takes what another left"
)
IN_EVAL = "the last call was in eval mode; call layer.train() before it"
USED_UP = "backward has used it up; to use one again, keep layer.cache and pass cache="
SET_TO_NONE = "layer.cache was set to None"


class CacheSlot(threading.local):
    """What the last call of each thread left for backward: a cache, or why there is none."""

    held: LayerCache | str = NO_CALL


def usable(cache: Any, owner: object) -> LayerCache:
    """Return `cache`, as given or from a slot, if a call of `owner` left it, or raise."""
    if isinstance(cache, str):
        raise wrong("cache", "one of a call in training mode", f"none: {cache}")
    if not isinstance(cache, LayerCache):
        raise wrong("cache", "layer.cache as a training call left it", type(cache).__name__)
    if cache.owner is not owner:
        got = "one of another layer, or of this one before it was copied or unpickled"
        raise wrong("cache", "one that a call of this layer left", got)
    return cache
