"""The time of one rank that computes while arrays are under way."""

from __future__ import annotations

from multihead.distributed.work import Cluster


class Clock:
    """One rank's time, in seconds, and what it has sent, in bytes. All ranks do the same.

    What is sent goes one after the other, at the link's bandwidth, and as much comes in meanwhile.
    The processors carry it: while the link is busy they compute slower by the share that takes.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.computing = self.handling = self.waiting = self.sent = 0.0
        self._bandwidth, self._latency = cluster.bandwidth, cluster.latency
        self._copying, self._share = cluster.copying, cluster.bandwidth / cluster.carrying
        self._busy = 0.0  # until when the link is

    @property
    def now(self) -> float:
        """All of the time."""
        return self.computing + self.handling + self.waiting

    def compute(self, seconds: float) -> None:
        """Let the engine work."""
        carrying = self._carried(seconds)
        self.computing += seconds
        self.handling += carrying

    def handle(self, size: float) -> None:
        """Let NumPy read and write so many bytes."""
        seconds = size / self._copying
        self.handling += seconds + self._carried(seconds)

    def start(self, size: float, messages: int = 1) -> float:
        """Send so many bytes, and return when as many have come, as `wait` takes it."""
        self.sent += size
        begin = max(self._busy, self.now)
        self._busy = begin + size / self._bandwidth
        return self._busy + messages * self._latency

    def wait(self, until: float) -> None:
        """Wait for what has been started."""
        self.waiting += max(until - self.now, 0.0)

    def exchange(self, size: float, others: int) -> None:
        """Send each other rank so many bytes, and wait for what they send."""
        if others:
            self.wait(self.start(others * size, others))

    def _carried(self, seconds: float) -> float:
        """Return how much longer work takes since the processors carry messages meanwhile."""
        moving = max(self._busy - self.now, 0.0)
        longer = self._share * moving
        if self._share < 1:  # the work may end before the messages have come
            longer = min(longer, seconds * self._share / (1 - self._share))
        return longer
