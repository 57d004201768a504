"""A small transformer whose sequences are shared by ranks, trained: ``train_rank.py FOLDER``.

Under torchrun: with DistributedDataParallel and with FSDP2, on all ranks as one sequence, and on a
mesh of data and sequences where there are four.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import torch

import multihead as mh
from multihead.distributed import Communicator, ContextParallel
from multihead.torch import MultiheadAttention, parallel

N, LENGTH, WIDTH, HEADS, STEPS, RATE = 4, 13, 12, 3, 3, 0.05
SECONDS = 60.0
Found = dict[str, np.ndarray]


class Block(torch.nn.Module):
    """Attention and a feed-forward part, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(WIDTH) for _ in range(2))
        options: dict[str, Any] = {"batch_first": True, "rope": mh.Rope(), "sinks": True}
        self.attention = MultiheadAttention(WIDTH, HEADS, **options)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 17), torch.nn.GELU(), torch.nn.Linear(17, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False, is_causal=True)[0]
        out: torch.Tensor = x + self.mlp(self.norms[1](x))
        return out


def model_of() -> torch.nn.Module:
    torch.manual_seed(7)
    model = torch.nn.Sequential(Block(), Block()).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and what is to come out, whole."""
    made = torch.Generator().manual_seed(11)
    shape = (2, N, LENGTH, WIDTH)
    steps = [torch.randn(shape, generator=made, dtype=torch.float64) for _ in range(STEPS)]
    return [(x, y) for x, y in steps]


def whole(x: Any) -> np.ndarray:
    """A parameter or gradient that FSDP2 may have sharded."""
    x = x.full_tensor() if hasattr(x, "full_tensor") else x
    copied: np.ndarray = x.detach().numpy().copy()
    return copied


def trained(model: torch.nn.Module, parts: list[Any], shares: int, total: int) -> Found:
    """Losses, gradients and parameters: gradients are averaged over `shares` ranks."""
    found: Found = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step, (x, y) in enumerate(parts):
        optimizer.zero_grad()
        # its part of the mean over all entries, as often as there are ranks to average over
        loss = (model(x) - y).square().sum() * shares / total
        loss.backward()
        found[f"loss {step}"] = loss.detach().numpy()
        for name, p in model.named_parameters():
            found[f"gradient {step} {name.removeprefix('module.')}"] = whole(p.grad)
        optimizer.step()
    for name, p in model.named_parameters():
        found[f"parameter {name.removeprefix('module.')}"] = whole(p)
    return found


def alone() -> Found:
    return trained(model_of(), batches(), 1, N * LENGTH * WIDTH)


def main() -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from multihead.distributed.process_group import ProcessGroupCommunicator

    dist.init_process_group("gloo")
    size = dist.get_world_size()
    every = dist.device_mesh.init_device_mesh("cpu", (size,))
    ways: dict[str, tuple[Communicator, slice]] = {
        "sequence": (ProcessGroupCommunicator(every, timeout=SECONDS), slice(None))
    }
    if size == 4:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
        group = ProcessGroupCommunicator(mesh, mesh_dim="sequence", timeout=SECONDS)
        first = mesh.get_local_rank("data") * N // 2
        ways = {"mesh": (group, slice(first, first + N // 2))}
    found: Found = {}
    for way, (ranks, items) in ways.items():
        shared = ContextParallel(ranks, sharding="zigzag")
        parts = [tuple(shared.shard(x[items], 1) for x in pair) for pair in batches()]
        for wrapper in ("DDP", "FSDP2"):
            model = parallel(model_of(), ranks, sharding="zigzag")
            if wrapper == "DDP":
                model = DistributedDataParallel(model)
            else:
                for block in model:
                    fully_shard(block, mesh=every)
                fully_shard(model, mesh=every)
            results = trained(model, parts, size, N * LENGTH * WIDTH)
            found |= {f"{way} {wrapper} {name}": x for name, x in results.items()}
    np.savez(pathlib.Path(sys.argv[1]) / f"{dist.get_rank()}.npz", **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
