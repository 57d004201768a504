"""What a sharded attention costs: time, bytes and memory of each scheme, from sizes and rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from multihead.distributed.agreement import ROOM

FORWARD, BACKWARD = 2, 5  # products of scores' size: what backward makes anew is among its five


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


class Cluster(NamedTuple):
    """Ranks, and what each of them can do.

    Attributes
    ----------
    ranks : int
    bandwidth : float
        Bytes per second out of a rank, and as many into it.
    latency : float
        Seconds that a message takes besides.
    forward, backward : float
        Floating-point operations per second of attention's passes on one rank.
    """

    ranks: int
    bandwidth: float
    latency: float
    forward: float
    backward: float


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


class Cost(NamedTuple):
    """What one rank spends on one attention.

    Attributes
    ----------
    computing : float
        Seconds in the engine.
    waiting : float
        Seconds for arrays that are under way, where computing does not hide them.
    sent : int
        Bytes.
    kept : int
        Bytes that last from forward to backward: inputs, output and statistics.
    passing : int
        Bytes besides, at most at a time: keys under way, and gradients.
    """

    computing: float
    waiting: float
    sent: int
    kept: int
    passing: int

    @property
    def seconds(self) -> float:
        """All of the time."""
        return self.computing + self.waiting


def schemes(work: Work, ranks: int) -> Iterator[Scheme]:
    """Give the schemes that fit: ranks divide heads, and key heads divide ranks or the reverse."""
    for shared in range(1, ranks + 1):
        whole = ranks % shared == 0 and work.heads % shared == 0
        if whole and (work.key_heads % shared == 0 or shared % work.key_heads == 0):
            yield Scheme(ranks // shared, shared)


def cost(work: Work, cluster: Cluster, scheme: Scheme) -> Cost:
    """Predict what one rank spends.

    Parameters
    ----------
    work : Work
    cluster : Cluster
    scheme : Scheme

    Returns
    -------
    Cost

    Notes
    -----
    A turn of the ring takes as long as computing or the transfer of the next keys, whichever takes
    longer; what heads are shared out by waits. What joins parts of results is left out.

    Examples
    --------
    >>> work = Work(length=8192, batch=1, heads=8, key_heads=8, head_dim=64, training=False)
    >>> cluster = Cluster(2, bandwidth=1e9, latency=0.0, forward=1e11, backward=1e11)
    >>> found = cost(work, cluster, Scheme(ring=2, heads=1))
    >>> round(found.computing, 3), found.waiting, found.sent
    (0.687, 0.0, 16779280)
    """
    ring, shared = scheme
    heads, key_heads = work.heads // shared, max(work.key_heads // shared, 1)
    tokens = work.batch * work.length / (ring * shared)  # of this rank's shard
    pairs = work.batch * work.length**2 / ring / (2 if work.causal else 1)
    product = 2.0 * pairs * heads * work.head_dim
    row = 2 * work.head_dim  # of keys and values
    keys = tokens * shared * key_heads * row  # elements that one turn brings
    others, around = shared - 1, ring - 1
    told = (others + around) * ROOM  # what ranks agree on
    lengths = (others + around) * 2 * 8  # of queries and keys
    if shared > 1:
        lengths += around * ROOM

    def moved(size: float) -> tuple[float, float]:
        """Bytes and seconds of the exchanges before and after, of so many bytes to each."""
        sent = others * size
        return sent, sent / cluster.bandwidth + 2 * others * cluster.latency

    def passes(products: int, rate: float, turn: float, last: float) -> tuple[float, float]:
        """Seconds in the engine and besides, of a ring whose turns bring so many bytes."""
        computing = products * product / rate
        moving = turn / cluster.bandwidth + cluster.latency
        waiting = around * max(moving - computing / ring, 0.0)
        return computing, waiting + (last / cluster.bandwidth if ring > 1 else 0.0)

    of_queries = tokens * heads * work.head_dim
    of_keys = tokens * key_heads * row
    of_rows = tokens * heads
    whole = shared * (2 * of_queries + of_keys)
    coming = min(around, 2) * keys
    sent, waiting = moved((2 * of_queries + of_keys) * work.itemsize + of_rows * work.sumsize)
    computing, ringing = passes(FORWARD, cluster.forward, keys * work.itemsize, 0.0)
    sent += around * keys * work.itemsize + told + lengths
    waiting += ringing
    kept = whole * work.itemsize + 3 * shared * of_rows * work.sumsize
    passing = coming * work.itemsize
    if work.training:
        more, seconds = moved(2 * of_queries * work.itemsize + of_keys * work.sumsize)
        sums = keys * work.sumsize
        slower, ringing = passes(BACKWARD, cluster.backward, keys * work.itemsize + sums, sums)
        sent += more + around * (keys * work.itemsize + sums) + told
        computing, waiting = computing + slower, waiting + seconds + ringing
        passing += (whole + coming) * work.sumsize
    return Cost(computing, waiting, round(sent), round(kept), round(passing))
