"""No new thread starts, as on a system that has no more: run with failing_heap preloaded.

Calls go on with the threads that there are, to the same bits, and with new ones once they start.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np

import multihead as mh


def threads() -> int:
    """Count this process's threads."""
    return len(list(Path("/proc/self/task").iterdir()))


def main() -> None:
    """Refuse threads, then allow them."""
    heap = ctypes.CDLL(None)
    mh.set_num_threads(4)
    layer = mh.MultiheadAttention(64, 4, batch_first=True, dropout=0.1, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 150, 64), dtype=np.float32)

    def step() -> list[bytes]:
        layer.rng_state = (1, 0)
        layer.zero_grad()
        out, weights = layer(x, x, x)
        return [y.tobytes() for y in (out, weights, *layer.backward(out), *layer.grads.values())]

    before = threads()
    heap.failing_heap_refuse_threads(1)
    refused = step()
    assert threads() == before
    assert step() == refused
    heap.failing_heap_refuse_threads(0)
    mh.set_num_threads(6)
    assert step() == refused
    assert threads() > before
    results: list[list[bytes]] = []
    caller = threading.Thread(target=lambda: results.append(step()))
    caller.start()
    caller.join()
    assert results == [refused]
    print("passed")


if __name__ == "__main__":
    main()
