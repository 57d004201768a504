"""What a sharded attention costs: time, bytes and memory of each scheme, from sizes and rates."""

from __future__ import annotations

from typing import NamedTuple

from multihead.distributed.agreement import ROOM
from multihead.distributed.clock import Clock
from multihead.distributed.part import Part, kept, part_of, passing
from multihead.distributed.work import Cluster, Scheme, Work

FORWARD, BACKWARD = 2, 5  # products of scores' size: what backward makes anew is among its five
LENGTHS = 16  # bytes in which a rank says how many queries and keys it has

# how often NumPy reads or writes an element
COPIED = 2
ADDED = 4  # made, read, added to a sum
MERGED = 8  # made, scaled, added to a sum that is scaled
ROUNDED = 56  # bytes, for an element of 2: the steps of rounding to nearest even


class Cost(NamedTuple):
    """What one rank spends on one attention.

    Attributes
    ----------
    computing : float
        Seconds in the engine.
    handling : float
        Seconds in which results of blocks are merged, arrays are copied and rounded, and messages
        carried by processors that would compute.
    waiting : float
        Seconds for arrays that are under way, where neither hides them.
    sent : int
        Bytes.
    kept : int
        Bytes that last from forward to backward: inputs, what is exchanged of them, outputs and
        statistics.
    passing : int
        Bytes besides, at most at a time: keys under way, and gradients.
    """

    computing: float
    handling: float
    waiting: float
    sent: int
    kept: int
    passing: int

    @property
    def seconds(self) -> float:
        """All of the time."""
        return self.computing + self.handling + self.waiting


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
    It goes through the passes as `ring` and `ulysses` do, with a clock instead of arrays: keys
    and gradients travel while the rank computes, what heads are exchanged for is waited for.

    Examples
    --------
    >>> work = Work(length=8192, batch=1, heads=8, key_heads=8, head_dim=64, training=False)
    >>> cluster = Cluster(2, bandwidth=1e9, latency=0.0, forward=1e11, backward=1e11)
    >>> found = cost(work, cluster, Scheme(ring=2, heads=1))
    >>> round(found.computing, 3), round(found.waiting, 6), found.sent
    (0.687, 2e-06, 16779280)
    """
    part, clock = part_of(work, scheme), Clock(cluster)
    _forward(part, work, clock, cluster.forward)
    if work.training:
        _backward(part, work, clock, cluster.backward)
    return Cost(
        clock.computing,
        clock.handling,
        clock.waiting,
        round(clock.sent),
        round(kept(part, work)),
        round(passing(part, work)),
    )


def _forward(part: Part, work: Work, clock: Clock, rate: float) -> None:
    """Agree, exchange tokens for heads, go round the ring, and exchange back."""
    others, around = part.shared - 1, part.ring - 1
    if others:
        clock.exchange(ROOM, others)
        clock.exchange(ROOM, around)
        clock.exchange(LENGTHS, others)
        for size in (part.queries, part.keys / 2, part.keys / 2):
            _exchange(part, clock, size * work.itemsize)
    clock.exchange(ROOM, around)
    clock.exchange(LENGTHS, around)
    for turn in range(part.ring):
        coming = clock.start(part.keys * work.itemsize, 2) if turn < around else 0.0
        clock.compute(2 * FORWARD * (part.other if turn else part.own) / rate)
        # of a causal ring's own keys, half of the queries see those of both ends
        merged = 1.0 if turn else 0.5 * (work.causal and around > 0)
        clock.handle(MERGED * merged * part.queries * work.sumsize)
        clock.wait(coming)
    clock.handle(part.queries * (ROUNDED if work.half else COPIED * work.itemsize))
    if others:
        _exchange(part, clock, part.queries * work.itemsize)
        _exchange(part, clock, part.rows * work.sumsize)


def _backward(part: Part, work: Work, clock: Clock, rate: float) -> None:
    """Do the same for gradients; those of the keys of a turn go home during the next."""
    others, around = part.shared - 1, part.ring - 1
    clock.exchange(ROOM, others)
    clock.exchange(ROOM, around)
    if others:
        _exchange(part, clock, part.queries * work.itemsize)
    home = 0.0
    for turn in range(part.ring):
        coming = clock.start(part.keys * work.itemsize, 2) if turn < around else 0.0
        clock.compute(2 * BACKWARD * (part.other if turn else part.own) / rate)
        added = 1.0 if turn else 0.5 * (work.causal and around > 0)
        clock.handle(ADDED * added * part.queries * work.sumsize)
        if turn:
            going = clock.start(part.keys * work.sumsize, 2)
            home = _come_home(part, work, clock, home, going)
        clock.wait(coming)
    _come_home(part, work, clock, home, 0.0)
    if work.half:
        clock.handle(ROUNDED * (part.queries + part.given))
    if others:
        _exchange(part, clock, part.queries * work.itemsize)
        for _ in range(2):
            _exchange(part, clock, part.keys / 2 * work.sumsize)


def _come_home(part: Part, work: Work, clock: Clock, coming: float, following: float) -> float:
    """Wait for the gradients of a turn and add them; return when those of the next come."""
    if coming:
        clock.wait(coming)
        clock.handle(ADDED * part.keys * work.sumsize)
    return following


def _exchange(part: Part, clock: Clock, size: float) -> None:
    """Send each rank its part of so many bytes: they are cut up before, and put in order after."""
    clock.handle(COPIED * size)
    clock.exchange(size / part.shared, part.shared - 1)
    clock.handle(COPIED * size)
