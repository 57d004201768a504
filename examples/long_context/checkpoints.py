"""Checkpoints: the whole of a run between two steps, in a file that is old or new, never half."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from ranks import from_first

from multihead.distributed import Communicator


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a file beside `path`, see that it is on the disk, and give it that name."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # of the name, too
    finally:
        os.close(folder)
    for old in path.parent.glob(f"{path.name}.*.tmp"):  # of a run that was killed
        old.unlink(missing_ok=True)


def read(path: Path, communicator: Communicator) -> dict[str, Any] | None:
    """Return what rank 0 finds in its file, on all ranks; None if there is no file."""
    data = path.read_bytes() if communicator.rank == 0 and path.exists() else b""
    data = from_first(communicator, data)
    if not data:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return state
