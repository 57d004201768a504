"""What is predicted and run: problems, and the links between the ranks."""

from __future__ import annotations

from typing import NamedTuple

from multihead.distributed.work import Scheme, Work

ITEMSIZES = {"float32": 4, "bfloat16": 2}
PAYLOAD = 1448 / 1514  # of an Ethernet frame, what is not a header of it, of IP or of TCP
MEGABIT = 1e6 / 8


class Cell(NamedTuple):
    """One problem in one scheme."""

    scheme: Scheme
    length: int
    heads: int
    key_heads: int
    head_dim: int = 64
    dtype: str = "float32"
    causal: bool = False
    training: bool = True

    @property
    def work(self) -> Work:
        """As the model takes it."""
        return Work(
            self.length,
            1,
            self.heads,
            self.key_heads,
            self.head_dim,
            self.causal,
            ITEMSIZES[self.dtype],
            self.training,
        )

    def __str__(self) -> str:
        heads = f"{self.heads} / {self.key_heads}" if self.key_heads < self.heads else self.heads
        parts = [f"{self.scheme}, L = {self.length:,}, {heads} heads, {self.dtype}"]
        if self.causal:
            parts.append("causal")
        if not self.training:
            parts.append("forward")
        return ", ".join(parts)


class Place(NamedTuple):
    """Ranks, the links between them, and what is run there.

    Attributes
    ----------
    ranks : int
    rate : float or None
        Bytes per second of each rank's link, headers and all; None: this machine's loopback.
    cells : tuple of Cell
    """

    ranks: int
    rate: float | None
    cells: tuple[Cell, ...]

    @property
    def bandwidth(self) -> float | None:
        """Bytes of arrays per second, of a link that is shaped."""
        return None if self.rate is None else self.rate * PAYLOAD

    def __str__(self) -> str:
        return "loopback" if self.rate is None else f"{self.rate / MEGABIT:g} Mbit/s"


RING, HEADS, MIXED = Scheme(2, 1), Scheme(1, 2), Scheme(2, 2)
RING_OF_4, HEADS_OF_4 = Scheme(4, 1), Scheme(1, 4)
TWO = (
    Cell(RING, 4096, 4, 4),
    Cell(HEADS, 4096, 4, 4),
    Cell(RING, 6144, 4, 2, causal=True),
    Cell(HEADS, 6144, 4, 2, causal=True, dtype="bfloat16"),
    Cell(RING, 12288, 4, 4, causal=True, dtype="bfloat16", training=False),
)
FOUR = (
    Cell(RING_OF_4, 4096, 4, 4),
    Cell(HEADS_OF_4, 4096, 4, 4),
    Cell(MIXED, 6144, 4, 4, causal=True),
    Cell(MIXED, 8192, 4, 4, dtype="bfloat16", training=False),
)
PLACES = (
    Place(2, None, TWO),
    Place(2, 1000 * MEGABIT, TWO),
    Place(2, 300 * MEGABIT, TWO),
    Place(2, 50 * MEGABIT, TWO),
    Place(4, None, FOUR),
    Place(4, 50 * MEGABIT, FOUR),
)
QUICK = (Place(2, None, TWO[:1]), Place(2, 100 * MEGABIT, TWO[:1]))
