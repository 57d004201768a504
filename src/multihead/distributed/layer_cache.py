"""What a training call of a sharded layer leaves for its backward."""

from __future__ import annotations

from typing import Any, NamedTuple

from multihead.checks import wrong
from multihead.distributed.attending import Attended
from multihead.distributed.layer_heads import Batch
from multihead.distributed.layer_masks import LayerMasks
from multihead.distributed.places import Places


class ParallelCache(NamedTuple):
    """What one training call leaves for backward on this rank; it refers to the inputs."""

    owner: object
    number: int
    batch: Batch
    masks: LayerMasks
    places: tuple[Places, Places]
    attended: Attended

    def __repr__(self) -> str:
        return f"ParallelCache(query={self.batch.shapes[0]}, key={self.batch.shapes[1]})"


def usable(cache: Any, owner: object) -> ParallelCache:
    """Return a cache that a call of its owner left; a word says why there is none."""
    if isinstance(cache, str):
        raise wrong("cache", "one of a call in training mode", f"none: {cache}")
    if not isinstance(cache, ParallelCache):
        expected = "the cache that a training call left"
        raise wrong("cache", expected, type(cache).__name__)
    if cache.owner is not owner:
        raise wrong("cache", "one that a call of this object left", "one of another")
    return cache
