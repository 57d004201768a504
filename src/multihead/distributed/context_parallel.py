"""How sequences are shared by ranks: said once, for layers, modules and models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np

from multihead.arrays import Array
from multihead.checks import integer, wrong, wrong_type
from multihead.distributed.agreement import agree_all
from multihead.distributed.all_to_all_functions import (
    all_to_all_attention,
    all_to_all_attention_backward,
)
from multihead.distributed.communicator import Communicator, checked_communicator
from multihead.distributed.ring_functions import (
    RingCache,
    ring_attention,
    ring_attention_backward,
)
from multihead.distributed.sharding import Sharding, gather, positions, shard, sharding_of

Scheme: TypeAlias = Literal["ring", "all_to_all"]

_SCHEMES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "ring": (ring_attention, ring_attention_backward),
    "all_to_all": (all_to_all_attention, all_to_all_attention_backward),
}


class ContextParallel:
    """Ranks that hold a part of each sequence, and how they attend to all of it.

    Parameters
    ----------
    communicator : Communicator
        The ranks; beside `ring`, those that exchange heads.
    scheme : {"ring", "all_to_all"}, default "ring"
        `ring_attention` or `all_to_all_attention`.
    sharding : {"contiguous", "zigzag"}, default "contiguous"
        "zigzag" shares out causal work evenly.
    ring : Communicator, optional
        With "all_to_all": the other dimension of a mesh, see `all_to_all_attention`.

    Attributes
    ----------
    communicator, scheme, sharding, ring
        As given.
    rank, size : int
        Of all ranks: those of the ring count before those that exchange heads.

    Raises
    ------
    ValueError
        If there is no such scheme or sharding, or `ring` is given beside "ring".
    TypeError
        If `communicator` or `ring` is no `Communicator`.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.distributed import ContextParallel, threads
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 9, 4))
    >>> def program(ranks):
    ...     parallel = ContextParallel(ranks, sharding="zigzag")
    ...     part = parallel.shard(x, axis=2)
    ...     out = parallel.attention(part, part, part, is_causal=True)
    ...     return parallel.positions(9).tolist(), out.shape
    >>> threads.run(2, program)
    [([0, 1, 2, 7, 8], (1, 2, 5, 4)), ([3, 4, 5, 6], (1, 2, 4, 4))]
    """

    def __init__(
        self,
        communicator: Communicator,
        scheme: Scheme = "ring",
        sharding: Sharding = "contiguous",
        ring: Communicator | None = None,
    ) -> None:
        self.communicator = checked_communicator("communicator", communicator)
        if scheme not in _SCHEMES:
            raise wrong("scheme", " or ".join(map(repr, _SCHEMES)), repr(scheme))
        self.scheme, self.sharding = scheme, sharding_of(sharding)
        self.ring = None if ring is None else checked_communicator("ring", ring)
        if ring is not None and scheme == "ring":
            raise wrong("ring", 'None, but with scheme="all_to_all"', type(ring).__name__)

    def __repr__(self) -> str:
        at = f"rank={self.rank} of {self.size}"
        return f"ContextParallel({at}, scheme={self.scheme!r}, sharding={self.sharding!r})"

    def __deepcopy__(self, _: Any) -> ContextParallel:
        """Return itself: copies of what holds it are of the same ranks."""
        return self

    def __reduce__(self) -> NoReturn:
        way = "what belongs to ranks that run is not pickled: keep state_dict(), not the object"
        raise TypeError(f"ContextParallel: {way}")

    @property
    def rank(self) -> int:
        """Which rank this is."""
        inner = self.communicator
        return inner.rank if self.ring is None else self.ring.rank * inner.size + inner.rank

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.communicator.size * (1 if self.ring is None else self.ring.size)

    @property
    def communicators(self) -> list[Communicator]:
        """All of them, the ring before those that exchange heads."""
        return [each for each, _ in self._ways()]

    @property
    def bytes_sent(self) -> int:
        """What this rank has sent to others so far."""
        return sum(each.bytes_sent for each in self.communicators)

    def positions(self, length: int) -> Array:
        """Return the positions in a sequence of so many tokens of those that this rank holds.

        Parameters
        ----------
        length : int
            Of the whole sequence.

        Returns
        -------
        ndarray of int64
        """
        held = np.arange(integer("length", length, 0))
        for each, sharding in self._ways():
            held = held[positions(len(held), each.rank, each.size, sharding)]
        return held

    def shard(self, x: Any, axis: int) -> Any:
        """Return the part of a whole array, or `Ragged`, that this rank holds; see `shard`."""
        for each, sharding in self._ways():
            x = shard(x, each, axis, sharding)
        return x

    def gather(self, x: Any, axis: int) -> Any:
        """Return on every rank the whole array of which each holds a part; see `gather`."""
        for each, sharding in reversed(self._ways()):
            x = gather(x, each, axis, sharding)
        return x

    def sum(self, array: Array) -> None:
        """Add up a C-contiguous array of all ranks, in place and in an order that is fixed."""
        for each in reversed(self.communicators):
            each.sum(array)

    def attention(self, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        """Attend as `ring_attention` or `all_to_all_attention`, which tell of arguments."""
        for name in ("communicator", "sharding", "ring"):
            if name in options:
                raise wrong_type(name, "nothing: the ContextParallel has it", "one")
        mesh: dict[str, Any] = {} if self.scheme == "ring" else {"ring": self.ring}
        forward, _ = _SCHEMES[self.scheme]
        return forward(
            query, key, value, *args,
            communicator=self.communicator, sharding=self.sharding, **mesh, **options,
        )  # fmt: skip

    def attention_backward(self, d_out: Any, cache: Any, **options: Any) -> tuple[Any, ...]:
        """Return gradients, as `ring_attention_backward` or `all_to_all_attention_backward`."""
        _, backward = _SCHEMES[self.scheme]
        gradients: tuple[Any, ...] = backward(d_out, cache, **options)
        return gradients

    def refuse(self, error: Exception) -> NoReturn:
        """Raise an error on this rank, and on those that attend meanwhile one that tells of it."""
        agree_all([self.communicator, *filter(None, [self.ring])], {}, error)
        raise error

    def _ways(self) -> list[tuple[Communicator, Sharding]]:
        """Communicators with how each shards what the one before it left together."""
        if self.ring is None:
            return [(self.communicator, self.sharding)]
        return [(self.ring, self.sharding), (self.communicator, "contiguous")]


def shares_mask(cache: Any) -> bool:
    """Whether all queries of a call share the row of its mask: gradients are of all ranks then."""
    problem = cache.problem if isinstance(cache, RingCache) else cache.call.problem
    return bool(problem.shared)
