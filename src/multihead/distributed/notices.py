"""What a rank says of a message ahead of it, so that nobody takes in what is not meant."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from multihead.arrays import Array
from multihead.checks import wrong

ROOM = 256  # bytes of a notice


def notice(arrays: Sequence[Array]) -> Array:
    """Say dtypes and sizes in so many bytes; what does not fit in is told by a checksum."""
    text = ", ".join(f"{x.size} {x.dtype.name}" for x in arrays).encode()
    if len(text) > ROOM:
        end = f"... {len(arrays)} arrays, {zlib.crc32(text):08x}".encode()
        text = text[: ROOM - len(end)] + end
    return np.frombuffer(text.ljust(ROOM), np.uint8)


def check(rank: int, arrays: Sequence[Array], said: Array) -> None:
    """Raise unless a rank sends what is to be received into these arrays."""
    wanted = notice(arrays)
    if not np.array_equal(said, wanted):
        raise wrong(f"what rank {rank} sends", _text(wanted), _text(said))


def _text(said: Array) -> str:
    return said.tobytes().decode(errors="replace").rstrip()
