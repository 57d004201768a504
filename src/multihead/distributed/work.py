"""What a sharded attention is asked to do, by whom, and in which ways."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Work(NamedTuple):
    """One attention, forward and, if it is trained, backward.

    Attributes
    ----------
    length, batch, heads, key_heads, head_dim : int
    causal : bool
        Sharded zig-zag then, so that all ranks have as much to do.
    itemsize : int
        Bytes of an element: 4 for float32, 2 for bfloat16. What is added up has 4, or 8 of 8.
    training : bool
    """

    length: int
    batch: int
    heads: int
    key_heads: int
    head_dim: int
    causal: bool = False
    itemsize: int = 4
    training: bool = True

    @property
    def sumsize(self) -> int:
        """Bytes of an element of what is added up."""
        return max(self.itemsize, 4)

    @property
    def half(self) -> bool:
        """Whether results are rounded from what is added up."""
        return self.itemsize < self.sumsize


class Cluster(NamedTuple):
    """Ranks, and what each of them can do.

    Attributes
    ----------
    ranks : int
    bandwidth : float
        Bytes of arrays per second out of a rank, and as many into it.
    latency : float
        Seconds that a message takes besides.
    forward, backward : float
        Floating-point operations per second of attention's passes on one rank.
    copying : float
        Bytes per second that NumPy reads and writes on one rank, in one thread: parts of results
        are added up, rounded and put in order by it.
    carrying : float
        Bytes per second that a rank's processors can send, and receive as many, if they do nothing
        else: what they do for messages they do not compute.
    """

    ranks: int
    bandwidth: float
    latency: float
    forward: float
    backward: float
    copying: float = math.inf
    carrying: float = math.inf


class Scheme(NamedTuple):
    """How ranks share one attention: `heads` share out the heads, `ring` the tokens among those.

    Their product is the number of ranks. One of them is 1 for all-to-all or ring attention alone.
    """

    ring: int
    heads: int

    def __str__(self) -> str:
        if self.heads == 1:
            return "ring"
        return "all-to-all" if self.ring == 1 else f"ring of {self.ring} × {self.heads} all-to-all"


def schemes(work: Work, ranks: int) -> Iterator[Scheme]:
    """Give the schemes that fit: ranks divide heads, and key heads divide ranks or the reverse."""
    for shared in range(1, ranks + 1):
        whole = ranks % shared == 0 and work.heads % shared == 0
        if whole and (work.key_heads % shared == 0 or shared % work.key_heads == 0):
            yield Scheme(ranks // shared, shared)
