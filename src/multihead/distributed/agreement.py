"""What ranks tell each other before they work together: nobody waits for data of another shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multihead.arrays import Array
from multihead.checks import wrong
from multihead.distributed.communicator import Communicator

ROOM = 2048  # bytes that each rank tells each other


def agree(
    communicator: Communicator, same: Mapping[str, Any], error: Exception | None = None
) -> None:
    """Return if every rank has the same values; else all of them raise.

    Parameters
    ----------
    communicator : Communicator
    same : mapping of str to what JSON holds
        What has to be the same everywhere, by the name of the argument.
    error : Exception, optional
        Why this rank cannot go on. It is raised here, and others are told.

    Raises
    ------
    ValueError
        If another rank has another value, or cannot go on.
    """
    text = _text({"same": dict(same)} if error is None else _told(error))
    if len(text) > ROOM:
        error = wrong("arguments", f"values that ranks can compare in {ROOM} bytes", len(text))
        text = _text(_told(error))
    own = np.full(ROOM, ord(" "), np.uint8)
    own[: len(text)] = np.frombuffer(text, np.uint8)
    rows = [np.empty_like(own) for _ in range(communicator.size)]
    communicator.all_gather(own, rows)
    if error is not None:
        raise error
    said = [json.loads(row.tobytes()) for row in rows]
    for rank, one in enumerate(said):
        if "error" in one:
            raise wrong(f"rank {rank}", "arguments that fit", one["error"])
    first = said[0]["same"]
    for rank, one in enumerate(said):
        for name in {**first, **one["same"]}:
            here, there = first.get(name), one["same"].get(name)
            if _text(here) != _text(there):  # 1 is not True, and nan is nan
                raise wrong(
                    name, f"{_shown(here)}, as on rank 0", f"{_shown(there)} on rank {rank}"
                )


def agree_all(
    communicators: Sequence[Communicator], said: dict[str, Any], error: Exception | None
) -> None:
    """Agree with all ranks of a mesh: with those of one dimension, then of the next."""
    for communicator in communicators[:-1]:
        try:
            agree(communicator, said, error)
        except Exception as found:
            error = found
    agree(communicators[-1], said, error)


def digest(array: Array | None) -> str | None:
    """Tell long values apart in a few letters."""
    if array is None:
        return None
    text = f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(text).hexdigest()[:16]


def _told(error: Exception) -> dict[str, str]:
    """Say an error in a line that has room."""
    line = f"{type(error).__name__}: {error}"[: ROOM // 5]
    return {"error": "".join(c if c.isprintable() else " " for c in line)}


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _shown(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else str(value)
