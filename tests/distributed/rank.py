"""The program of each rank, under torchrun and mpiexec: ``rank.py gloo|mpi FOLDER``.

It solves every problem, and writes bits, bytes and errors to a file for each rank.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import sharded_layers
from sharded_problem import PROBLEMS, Problem, Results, solve

from multihead.distributed import Communicator, ContextParallel, ring_attention, threads

SHARDING = "zigzag"
SECONDS = 60.0


LAYERS = [sharded_layers.PROBLEMS[i] for i in (4, 9, 11)]
HEADS = 2  # ranks that exchange heads, in a mesh


class Ranks(NamedTuple):
    """All ranks, and the two dimensions of a mesh of them."""

    every: Communicator
    heads: Communicator
    ring: Communicator


def on_threads(ranks: Communicator) -> Ranks:
    row, column = divmod(ranks.rank, HEADS)
    return Ranks(
        ranks,
        threads.part_of(ranks, [row * HEADS + i for i in range(HEADS)]),
        threads.part_of(ranks, list(range(column, ranks.size, HEADS))),
    )


def on_mpi() -> Ranks:
    from multihead.distributed import mpi

    world = mpi.MPI.COMM_WORLD
    row, column = divmod(world.rank, HEADS)
    comms = (world, world.Split(row), world.Split(column))
    return Ranks(*(mpi.MPICommunicator(comm, timeout=SECONDS) for comm in comms))


def on_gloo() -> Ranks:
    import torch.distributed as dist

    from multihead.distributed.process_group import ProcessGroupCommunicator

    dist.init_process_group("gloo")
    shape = (dist.get_world_size() // HEADS, HEADS)
    mesh = dist.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=("ring", "heads"))
    return Ranks(
        ProcessGroupCommunicator(timeout=SECONDS),
        ProcessGroupCommunicator(mesh, mesh_dim="heads", timeout=SECONDS),
        ProcessGroupCommunicator(mesh["ring"], timeout=SECONDS),
    )


def every_bit(ranks: Ranks) -> dict[str, Any]:
    """Results of all problems in all schemes, and what each made this rank send."""
    found: dict[str, Any] = {}
    every, heads, ring = ranks
    schemes: dict[str, Callable[[Problem], Results]] = {
        "ring": lambda problem: solve(every, problem, SHARDING),
        "all-to-all": lambda problem: solve(every, problem, SHARDING, "all-to-all"),
        "mesh": lambda problem: solve(heads, problem, SHARDING, "all-to-all", ring),
    }
    for scheme, solved in schemes.items():
        for number, problem in enumerate(PROBLEMS):
            for communicator in ranks:
                communicator.bytes_sent = 0
            for name, x in solved(problem).items():
                bits = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
                found[f"{scheme} {number} {name}"] = bits
            found[f"{scheme} {number} bytes"] = np.array([x.bytes_sent for x in ranks])
    return found | bits_of_layers(ranks)


def bits_of_layers(ranks: Ranks) -> dict[str, Any]:
    """Results of layers, in all schemes."""
    found: dict[str, Any] = {}
    every, heads, ring = ranks
    schemes = {
        "ring": ContextParallel(every, "ring", SHARDING),
        "all-to-all": ContextParallel(every, "all_to_all", SHARDING),
        "mesh": ContextParallel(heads, "all_to_all", SHARDING, ring),
    }
    for scheme, parallel in schemes.items():
        for problem in LAYERS:
            for name, x in sharded_layers.solve(problem, parallel).items():
                flat = np.ascontiguousarray(getattr(x, "values", x))
                found[f"{scheme} {problem} {name}"] = flat.reshape(-1).view(np.uint8)
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
    ranks = on_mpi() if transport == "mpi" else on_gloo()
    found = every_bit(ranks)
    found["mistake"] = np.array(what_a_mistake_gives(ranks.every))
    np.savez(pathlib.Path(folder) / f"{transport}{ranks.every.rank}.npz", **found)
    if transport == "gloo":
        import torch.distributed as dist

        dist.destroy_process_group()


if __name__ == "__main__":
    main()
