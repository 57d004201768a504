"""A training run that can be resumed: ``training.py gloo|mpi CHECKPOINT STEPS TIMEOUT``.

Two layers of ring attention learn by Adam, in NumPy; each rank holds a part of every sequence.
Rank 0 says the loss of every step, in hexadecimal, and writes a checkpoint every few.
``training.py serve`` starts such programs on gloo, by forks.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import sys

import fault_rank
import numpy as np

from multihead import files
from multihead.distributed import Communicator, ring_attention, ring_attention_backward, shard

N, H, L, E = 2, 4, 24, 64  # sequences, heads, tokens, features
LAYERS, EVERY, KEY = 2, 3, "training"
RATE, FIRST, SECOND, LEAST = 3e-3, 0.9, 0.99, 1e-8
State = dict[str, np.ndarray]


def begin() -> State:
    """Parameters, and the two moments of their gradients."""
    rng = np.random.default_rng(0)
    state = {}
    for i in range(LAYERS):
        for name in "qkvo":
            shape = (H, E, E // H) if name != "o" else (E, E)
            state[f"{i}{name}"] = rng.normal(0, E**-0.5, shape).astype(np.float32)
    return state | {f"{moment} {p}": np.zeros_like(x) for p, x in state.items() for moment in "mv"}


def batch(step: int, ranks: Communicator) -> tuple[np.ndarray, np.ndarray]:
    """This rank's tokens, (N, L_r, E), and what they should become: the token before, turned."""
    x = np.random.default_rng([1, step]).normal(size=(N, L, E)).astype(np.float32)
    target = np.roll(x[..., ::-1], 1, axis=1)
    return tuple(shard(y, ranks, sharding="zigzag") for y in (x, target))


def loss_and_gradients(state: State, step: int, ranks: Communicator) -> tuple[float, State]:
    """Forward and backward through all layers, and the sums over all ranks."""
    x, target = batch(step, ranks)
    kept = []
    for i in range(LAYERS):
        q, k, v = (np.einsum("nle,hed->nhld", x, state[f"{i}{name}"]) for name in "qkv")
        out, cache = ring_attention(
            q, k, v, is_causal=True, communicator=ranks, sharding="zigzag", return_cache=True
        )
        flat = np.moveaxis(out, 1, 2).reshape(x.shape)
        kept.append((x, flat, cache))
        x = x + flat @ state[f"{i}o"]
    error = x - target
    d_x, found = error * np.float32(2 / (N * L * E)), {}
    for i in reversed(range(LAYERS)):
        x, flat, cache = kept[i]
        found[f"{i}o"] = np.einsum("nle,nlf->ef", flat, d_x)
        d_out = np.moveaxis((d_x @ state[f"{i}o"].T).reshape(N, -1, H, E // H), 2, 1)
        gradients = ring_attention_backward(np.ascontiguousarray(d_out), cache)
        for name, d in zip("qkv", gradients, strict=True):
            found[f"{i}{name}"] = np.einsum("nle,nhld->hed", x, d)
            d_x = d_x + np.einsum("nhld,hed->nle", d, state[f"{i}{name}"])
    total = np.array([np.square(error, dtype=np.float64).sum()])
    for array in (total, *found.values()):
        ranks.sum(array)
    return float(total[0]) / (N * L * E), found


def update(state: State, gradients: State, step: int) -> None:
    """One step of Adam."""
    for name, d in gradients.items():
        m, v = state[f"m {name}"], state[f"v {name}"]
        m += (d - m) * np.float32(1 - FIRST)
        v += (d * d - v) * np.float32(1 - SECOND)
        ahead = m / np.float32(1 - FIRST ** (step + 1))
        spread = np.sqrt(v / np.float32(1 - SECOND ** (step + 1))) + np.float32(LEAST)
        state[name] -= np.float32(RATE) * ahead / spread


def load(path: pathlib.Path) -> tuple[int, State]:
    """Steps that were done, and the state after them."""
    note, state = files.read(path, KEY, "training.py")
    return note["steps"], state


def digest(state: State) -> str:
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode() + state[name].tobytes())
    return sha.hexdigest()[:16]


def train(ranks: Communicator, path: pathlib.Path, steps: int) -> None:
    first, state = 0, begin()
    if path.exists():
        first, state = load(path)
    print(f"rank {ranks.rank} pid {os.getpid()} begins at step {first}", flush=True)
    for step in range(first, steps):
        loss, gradients = loss_and_gradients(state, step, ranks)
        update(state, gradients, step)
        if ranks.rank == 0:
            print(f"step {step}: {loss.hex()}", flush=True)
            if (step + 1) % EVERY == 0 or step + 1 == steps:
                print(f"state {step + 1}: {digest(state)}", flush=True)
                files.write(path, state, {KEY: json.dumps({"steps": step + 1})})


def main() -> None:
    transport, path, steps, timeout = sys.argv[1:]
    ranks = fault_rank.ON[transport](60.0)
    ranks.timeout = float(timeout)
    train(ranks, pathlib.Path(path), int(steps))
    print(f"rank {ranks.rank} ends", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        fault_rank.serve()
    main()
