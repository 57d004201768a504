"""The program of a rank: ``python -m benchmarks.plan.rank``, with cells as JSON in its input.

It measures what it can do in a second, then a step, by turns; rank 0 writes what all found.
"""

from __future__ import annotations

import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist

from benchmarks.plan.cells import Cell
from multihead.cli import rates
from multihead.cli.elements import store
from multihead.distributed import (
    Communicator,
    all_to_all_attention,
    all_to_all_attention_backward,
    ring_attention,
    ring_attention_backward,
)
from multihead.distributed.process_group import ProcessGroupCommunicator
from multihead.distributed.work import Scheme

QUIET = 0.85  # of the processors' time has to be ours
STEADY = 0.1  # and rates before and after a step no further apart than this
TURNS = 2  # of each measurement of a rate


class Sample(NamedTuple):
    """What a rank does in a second, all ranks at once, and how much of the machine it had."""

    forward: float
    backward: float
    copying: float
    carrying: float
    bandwidth: float
    latency: float
    granted: float


class Mesh(NamedTuple):
    """All ranks, those that go round, and those that exchange heads."""

    every: Communicator
    ring: Communicator
    heads: Communicator


def mesh(scheme: Scheme) -> Mesh:
    """Return this rank's communicators; those that exchange heads are neighbours."""
    every = ProcessGroupCommunicator()
    row, column = divmod(every.rank, scheme.heads)
    found: list[Communicator] = []
    rings = [list(range(c, every.size, scheme.heads)) for c in range(scheme.heads)]
    rows = [list(range(r * scheme.heads, (r + 1) * scheme.heads)) for r in range(scheme.ring)]
    for lists, own in ((rings, column), (rows, row)):
        groups = [dist.new_group(ranks, backend="gloo") for ranks in lists]
        found.append(ProcessGroupCommunicator(groups[own]))
    return Mesh(every, *found)


def steps(cell: Cell, ranks: Mesh) -> Callable[[], None]:
    """Make this rank's arrays, and return what attends to them."""
    scheme = cell.scheme
    rng = np.random.default_rng(ranks.every.rank)
    tokens = cell.length // ranks.every.size
    q, k, v, d_out = (
        store(rng.standard_normal((1, heads, tokens, cell.head_dim), np.float32), cell.dtype)
        for heads in (cell.heads, cell.key_heads, cell.key_heads, cell.heads)
    )
    options: dict[str, Any] = {
        "is_causal": cell.causal,
        "enable_gqa": True,
        "return_cache": cell.training,
        "sharding": "zigzag" if cell.causal and scheme.ring > 1 else "contiguous",
    }
    attend: Any = ring_attention
    backward: Any = ring_attention_backward
    options["communicator"] = ranks.ring
    if scheme.heads > 1:
        attend, backward = all_to_all_attention, all_to_all_attention_backward
        options["communicator"] = ranks.heads
        options["ring"] = ranks.ring if scheme.ring > 1 else None

    def step() -> None:
        if cell.training:
            _, cache = attend(q, k, v, **options)
            backward(d_out, cache)
        else:
            attend(q, k, v, **options)

    return step


def sample(cell: Cell, every: Communicator, bandwidth: float | None) -> Sample:
    """Measure what this rank does in a second while the others do the same."""
    share = max(1.0, every.size / (os.cpu_count() or 1))  # ranks of a processor
    _together(every)
    wall, used = time.perf_counter(), time.process_time()
    forward, backward = rates.attention(cell.head_dim, cell.dtype, TURNS)
    wall, used = time.perf_counter() - wall, time.process_time() - used
    granted = min(share * used / wall, 1.0)
    _together(every)
    copying, carrying = rates.copying(cell.head_dim, TURNS), rates.carrying()
    latency = median(_exchanged(every, 1) for _ in range(9))
    if bandwidth is None:
        bandwidth = rates.MESSAGE / median(_exchanged(every, rates.MESSAGE) for _ in range(TURNS))
    return Sample(forward, backward, copying, carrying / share, bandwidth, latency, granted)


def _exchanged(every: Communicator, size: int) -> float:
    """Return the seconds in which each rank sends so many bytes to the next."""
    out, into = np.ones(size, np.uint8), np.ones(size, np.uint8)
    _together(every)
    begin = time.perf_counter()
    after, before = (every.rank + 1) % every.size, (every.rank - 1) % every.size
    every.exchange({after: [out]}, {before: [into]}).wait()
    return time.perf_counter() - begin


def _together(every: Communicator) -> None:
    every.sum(np.zeros(1))


def gathered(every: Communicator, numbers: Any) -> list[list[float]]:
    """Return some numbers of every rank."""
    own = np.array(numbers, np.float64)
    rows = [np.empty_like(own) for _ in range(every.size)]
    every.all_gather(own, rows)
    found: list[list[float]] = np.array(rows).tolist()
    return found


def memory(cell: Cell, ranks: Mesh) -> int:
    """Return the most bytes that arrays take at a time in a step, with all that it is given."""
    tracemalloc.start()
    try:
        steps(cell, ranks)()
        before, _ = tracemalloc.get_traced_memory()
        step = steps(cell, ranks)
        tracemalloc.reset_peak()
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def run(cell: Cell, ranks: Mesh, asked: dict[str, Any]) -> dict[str, Any]:
    """Measure a cell until there are enough steps on a quiet machine, or too many on a busy one."""
    every, bandwidth = ranks.every, asked["bandwidth"]
    peaks = gathered(every, [memory(cell, ranks)])
    step = steps(cell, ranks)
    for one in set(ranks):
        one.bytes_sent = 0
    step()
    sent = gathered(every, [ranks.ring.bytes_sent + ranks.heads.bytes_sent])
    turns: list[dict[str, Any]] = []
    before = gathered(every, sample(cell, every, bandwidth))
    while len(turns) < asked["most"] and sum(turn["quiet"] for turn in turns) < asked["turns"]:
        _together(every)
        begin = time.perf_counter()
        step()
        seconds = gathered(every, [time.perf_counter() - begin])
        after = gathered(every, sample(cell, every, bandwidth))
        turn = {"seconds": max(x for (x,) in seconds), "rates": between(before, after)._asdict()}
        turn["quiet"] = quiet(before) and quiet(after) and steady(before, after)
        turns.append(turn)
        before = after
    return {
        "bytes": [round(x) for (x,) in sent],
        "memory": max(round(x) for (x,) in peaks),
        "turns": turns,
    }


def quiet(ranks: list[list[float]]) -> bool:
    """Whether no other program took a part of the processors."""
    return sum(Sample(*of).granted for of in ranks) >= QUIET * len(ranks)


def steady(before: list[list[float]], after: list[list[float]]) -> bool:
    """Whether the machine was as fast after a step as before it."""
    old, new = (np.array(_slowest(ranks)[:2]) for ranks in (before, after))
    return bool((np.abs(new / old - 1) < STEADY).all())


def between(before: list[list[float]], after: list[list[float]]) -> Sample:
    """Return the mean of two samples, of the slowest rank each."""
    return Sample(*np.mean([_slowest(before), _slowest(after)], axis=0).tolist())


def _slowest(ranks: list[list[float]]) -> list[float]:
    """Return of each rate the lowest, and the highest latency: others wait for that rank."""
    of = Sample(*np.min(ranks, axis=0).tolist())
    return list(of._replace(latency=max(Sample(*x).latency for x in ranks)))


def main() -> None:
    """Run what the input asks for."""
    asked = json.loads(sys.stdin.read())
    dist.init_process_group("gloo")
    for fields in asked["cells"]:
        scheme, *rest = fields
        cell = Cell(Scheme(*scheme), *rest)
        ranks = mesh(cell.scheme)
        found = run(cell, ranks, asked)
        if ranks.every.rank == 0:
            print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
