"""Train a byte-level language model on pieces of text that no process holds as a whole.

python examples/long_context.py
torchrun --nproc-per-node 4 examples/long_context.py
mpiexec -n 4 python examples/long_context.py
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tiny_llama"))  # of progress and text
sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))

import checkpoints
from byte_model import ByteModel, Sizes, loss_of, sharded_model
from memory import Peak
from pieces import Pieces, longest
from progress import progress
from ranks import Ranks, left, started

import multihead as mh
from multihead.distributed import ContextParallel

PEAK_RATE, WARM = 3e-3, 10  # steps that the rate rises
LARGEST_NORM = 1.0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a language model past one machine.")
    add = parser.add_argument
    add("--steps", type=int, default=30)
    add("--length", type=int, default=4096, help="bytes of the piece that a step reads")
    add("--blocks", type=int, default=2)
    add("--width", type=int, default=128, help="a multiple of 8 heads")
    add("--scheme", choices=("ring", "all_to_all"), default="ring")
    add("--sharding", choices=("zigzag", "contiguous"), default="zigzag")
    add("--seed", type=int, default=0, help="of the model and the pieces")
    add("--threads", type=int, help="of each process; default: shares out the cores")
    add("--timeout", type=float, default=60.0, help="seconds to wait for another process")
    add("--out", type=Path, default=Path("long-context-out"), help="folder of rank 0")
    add("--save", type=int, default=10, help="steps between checkpoints")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    options = parser.parse_args()
    for name in ("steps", "length", "blocks", "width", "save"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    if options.width % 8:
        parser.error(f"--width: expected a multiple of 8, got {options.width}")
    if options.length > longest():
        parser.error(f"--length: the text has {longest()} bytes, got {options.length}")
    return options


class Training:
    """A model, what moves it, and what has been learned so far: the state of a run."""

    def __init__(self, options: argparse.Namespace, parallel: ContextParallel) -> None:
        sizes = Sizes(options.width, hidden=5 * options.width // 2, blocks=options.blocks)
        self.model: ByteModel = sharded_model(options.seed, sizes, parallel)
        self.adam = torch.optim.AdamW(self.model.parameters(), weight_decay=0.0)
        self.parallel = parallel
        self.pieces = Pieces(options.length, options.seed, parallel)
        self.length = options.length
        self.losses: list[float] = []

    def step(self) -> float:
        """Read a piece, take a step down the gradient, return the loss: the same on every rank."""
        text, following = self.pieces[len(self.losses)]
        loss = loss_of(self.model, text, following, self.length)
        loss.backward()
        self.losses.append(self._sum_of_ranks(loss))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        for group in self.adam.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, len(self.losses) / WARM)
        self.adam.step()
        self.adam.zero_grad(set_to_none=False)
        return self.losses[-1]

    def _sum_of_ranks(self, loss: torch.Tensor) -> float:
        """Add up the gradients of all ranks where they are; return the sum of the losses."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([loss.detach().reshape(1), *(grad.reshape(-1) for grad in grads)])
        self.parallel.sum(flat.numpy())
        whole, *parts = flat.split([1, *(grad.numel() for grad in grads)])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.reshape(grad.shape))
        return whole.item()

    def state(self) -> dict[str, Any]:
        """Return all that a run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "adam": self.adam.state_dict(),
            "losses": self.losses,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.losses = list(state["losses"])


class Figures:
    """What the last step took: seconds, bytes and memory, the most of any rank."""

    def __init__(self, parallel: ContextParallel) -> None:
        self._parallel, self._peak = parallel, Peak()

    def begin(self) -> None:
        """Begin to count."""
        self._sent = self._parallel.bytes_sent
        self._peak.begin()
        self._began = time.perf_counter()

    def end(self) -> dict[str, float]:
        """Return what there is to say since `begin`."""
        seconds = time.perf_counter() - self._began
        own = np.array([seconds, self._peak.bytes(), self._parallel.bytes_sent - self._sent])
        every = [np.empty_like(own) for _ in range(self._parallel.size)]
        self._parallel.communicator.all_gather(own, every)
        most = np.max(every, axis=0)
        return {"seconds": most[0], "memory": int(most[1]), "sent": int(most[2])}


def fit(training: Training, options: argparse.Namespace, first: bool) -> list[dict[str, float]]:
    """Train, with a line for each step and a bar on rank 0; return the figures of the steps."""
    path = options.out / "checkpoint.pt"
    figures, found = Figures(training.parallel), []
    begun = len(training.losses)
    with progress(options.steps - begun) as (advance, say):
        for step in range(begun, options.steps):
            figures.begin()
            loss = training.step()
            one = {"step": step + 1, "loss": loss, **figures.end()}
            found.append(one)
            if (step + 1) % options.save == 0 or step + 1 == options.steps:
                if first:
                    checkpoints.write(path, training.state())
            if first:
                advance(f"loss {loss:.3f}")
                speed = options.length / one["seconds"]
                each = f"{one['memory'] / 1e6:6.1f} MB   sent {one['sent'] / 1e6:5.2f} MB"
                say(f"step {step + 1:4}   loss {loss:.6f} {speed:8.0f} tokens/s {each}")
    return found


def main() -> None:
    """Train."""
    options = parse()
    ranks: Ranks = started(options.timeout)
    threads = options.threads or max(1, len(os.sched_getaffinity(0)) // ranks.beside)
    mh.set_num_threads(threads)
    torch.set_num_threads(threads)
    first = ranks.communicator.rank == 0
    parallel = ContextParallel(ranks.communicator, options.scheme, options.sharding)
    training = Training(options, parallel)
    if first:
        options.out.mkdir(parents=True, exist_ok=True)
        size = ranks.communicator.size
        print(f"{ranks.launcher}, {size} x {threads} threads, {options.length} bytes a step")
    if options.resume:
        state = checkpoints.read(options.out / "checkpoint.pt", ranks.communicator)
        if state is not None:
            training.restore(state)
    found = fit(training, options, first)
    if first:
        (options.out / "steps.json").write_text(json.dumps(found))
        if not all(map(math.isfinite, training.losses)):
            raise SystemExit("the loss is not finite")
    left(ranks)


if __name__ == "__main__":
    main()
