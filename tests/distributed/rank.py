"""The program of each rank, under torchrun and mpiexec: ``rank.py gloo|mpi FOLDER``.

It solves every problem, and writes bits, bytes and errors to a file for each rank.
"""

from __future__ import annotations

import doctest
import pathlib
import sys
from typing import Any

import numpy as np
from sharded_problem import PROBLEMS, solve

from multihead.distributed import Communicator, ring_attention

SHARDING = "zigzag"
SECONDS = 30.0


def communicator_of(transport: str) -> Communicator:
    if transport == "mpi":
        from multihead.distributed import mpi

        assert doctest.testmod(mpi).failed == 0 or mpi.MPI.COMM_WORLD.size > 1
        return mpi.MPICommunicator(timeout=SECONDS)
    import torch.distributed as dist

    from multihead.distributed.process_group import ProcessGroupCommunicator

    dist.init_process_group("gloo")
    return ProcessGroupCommunicator(timeout=SECONDS)


def every_bit(ranks: Communicator) -> dict[str, Any]:
    """Results of all problems, and what each made this rank send."""
    found: dict[str, Any] = {}
    for number, problem in enumerate(PROBLEMS):
        ranks.bytes_sent = 0
        for name, x in solve(ranks, problem, SHARDING).items():
            found[f"{number} {name}"] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        found[f"{number} bytes"] = np.array(ranks.bytes_sent)
    return found


def what_a_mistake_gives(ranks: Communicator) -> str:
    x = np.ones((1, 2, 6, 4 + 4 * (ranks.rank == 1)), np.float32)
    try:
        ring_attention(x, x, x, communicator=ranks)
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    transport, folder = sys.argv[1:]
    ranks = communicator_of(transport)
    found = every_bit(ranks)
    found["mistake"] = np.array(what_a_mistake_gives(ranks))
    np.savez(pathlib.Path(folder) / f"{transport}{ranks.rank}.npz", **found)
    if transport == "gloo":
        import torch.distributed as dist

        dist.destroy_process_group()


if __name__ == "__main__":
    main()
