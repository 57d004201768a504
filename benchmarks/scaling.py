"""How time and memory grow with the sequence: ``python -m benchmarks.scaling`` (``make scaling``).

A training step of one layer, forward and backward, on one thread and on all, of sequences that
double in length; and the peak of its memory in a process of its own. The figures go to
``benchmarks/results/scaling.json`` and from there into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import multihead as mh
from benchmarks import tables
from benchmarks.cases import Shape
from benchmarks.machine import Limit, describe, set_threads
from benchmarks.targets.processes import peak

RESULT = tables.RESULTS / "scaling.json"
EMBED_DIM, HEADS = 512, 8
LENGTHS = (1024, 2048, 4096, 8192, 16384)
TURNS, BUDGET = 7, 12.0  # of each length and count of threads: at most so many, and so many seconds


def measure(lengths: Sequence[int], tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure time and memory of every length."""
    threads = min(mh.get_num_threads(), os.cpu_count() or 1)
    limit = Limit(threads)
    rows = []
    for length in lengths:
        shape = Shape(1, length, EMBED_DIM, HEADS)
        mark = limit.mark()
        one, every = _seconds(shape, (1, threads), limit)
        memory = peak(threads, shape)
        row = {
            "length": length,
            "seconds": {"one": one, "all": every},
            "memory": memory,
            "input": 4 * length * EMBED_DIM,
            "granted_processor_time": limit.granted_since(mark),
        }
        rows.append(row)
        tell(f"L = {length}: {every:.3f} s, on one thread {one:.3f}; {memory / 1e6:.0f} MB")
    return {"machine": describe(threads), "lengths": rows}


def _seconds(shape: Shape, counts: Sequence[int], limit: Limit) -> list[float]:
    """Return medians of a training step for each count of threads, which take turns."""
    rng = np.random.default_rng(0)
    size = (shape.batch, shape.length, shape.embed_dim)
    x, d_out = (rng.standard_normal(size, np.float32) for _ in range(2))
    layer = mh.MultiheadAttention(shape.embed_dim, shape.num_heads, batch_first=True, seed=0)
    found: dict[int, list[float]] = {count: [] for count in counts}
    begin = time.perf_counter()
    for turn in range(TURNS):
        if turn > 2 and time.perf_counter() - begin > BUDGET:
            break
        limit()
        for count in counts if turn % 2 else counts[::-1]:
            set_threads(count)
            start = time.perf_counter()
            layer(x, x, x, need_weights=False)
            layer.backward(d_out)
            found[count].append(time.perf_counter() - start)
    set_threads(limit.threads)
    return [median(found[count][1:]) for count in counts]  # the first warms up


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short lengths; writes no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there instead")
    options = parser.parse_args(arguments)
    found = measure(LENGTHS[:2] if options.quick else LENGTHS, print)
    file = options.json or (None if options.quick else RESULT)
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")
    if file == RESULT:
        tables.main([])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
