"""Which processes take part, and what starts them: torchrun, mpiexec or nobody."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from multihead.distributed import Alone, Communicator

_OF_MPI = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


class Ranks(NamedTuple):
    """All processes.

    Attributes
    ----------
    communicator : Communicator
    launcher : str
    beside : int
        How many of them are on this machine.
    """

    communicator: Communicator
    launcher: str
    beside: int


def started(timeout: float) -> Ranks:
    """Find the others; what starts processes says so in their environment."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        import torch.distributed as dist

        from multihead.distributed.process_group import ProcessGroupCommunicator

        dist.init_process_group("gloo")
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return Ranks(ProcessGroupCommunicator(timeout=timeout), "torchrun", here)
    if any(name in os.environ for name in _OF_MPI):
        from mpi4py import MPI

        from multihead.distributed.mpi import MPICommunicator

        beside = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
        return Ranks(MPICommunicator(timeout=timeout), "mpiexec", beside.size)
    return Ranks(Alone(), "one process", 1)


def left(ranks: Ranks) -> None:
    """Leave the others, when all is done."""
    if ranks.launcher == "torchrun":
        import torch.distributed as dist

        dist.destroy_process_group()


def from_first(communicator: Communicator, data: bytes) -> bytes:
    """Return what rank 0 has, on all ranks."""
    others = range(1, communicator.size)
    size = np.array([len(data)])
    sends = {rank: [size] for rank in others} if communicator.rank == 0 else {}
    communicator.exchange(sends, {0: [size]} if communicator.rank else {}).wait()
    whole = np.frombuffer(data, np.uint8) if communicator.rank == 0 else np.empty(size, np.uint8)
    sends = {rank: [whole] for rank in others} if communicator.rank == 0 else {}
    communicator.exchange(sends, {0: [whole]} if communicator.rank else {}).wait()
    return whole.tobytes()
