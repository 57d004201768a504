"""Calls under a real limit of address space, from too little on: run with `numpy` or `torch`.

What does not fit is a MemoryError, or PyTorch's own error for its tensors; without the limit the
same call works after it. Prints how many limits were too low, and how many were not.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable

import numpy as np

from large_sizes import limit
from memory_faults import no_memory

Step = Callable[[], list[bytes]]
ROOMS = [0, *(2**n << 20 for n in range(3, 10, 2))]  # bytes


def numpy_step() -> Step:
    import multihead as mh

    layer = mh.MultiheadAttention(64, 2, batch_first=True, seed=0)
    x = np.random.default_rng(0).standard_normal((3, 1000, 64), dtype=np.float32)

    def step() -> list[bytes]:
        layer.zero_grad()
        out, weights = layer(x, x, x, average_attn_weights=False)
        grads = layer.backward(out, weights)
        return [y.tobytes()[:4096] for y in (out, weights, *grads, *layer.grads.values())]

    return step


def torch_step() -> Step:
    import torch

    import multihead.torch as mht

    layer = mht.MultiheadAttention(64, 2, batch_first=True)
    x = torch.randn(3, 1000, 64)

    def step() -> list[bytes]:
        layer.zero_grad()
        out, weights = layer(x, x, x, average_attn_weights=False)
        (out.square().sum() + weights.square().sum()).backward()
        results = (out, weights, *(p.grad for p in layer.parameters()))
        return [y.detach().numpy().tobytes()[:4096] for y in results]

    return step


def main(face: str) -> None:
    """Run one step under each limit."""
    step = {"numpy": numpy_step, "torch": torch_step}[face]()
    expected = step()
    counts = [0, 0]
    for room in ROOMS:
        gc.collect()
        limit(room)
        try:
            within = step()
        except (MemoryError, RuntimeError) as error:
            within = None
            if not no_memory(error):
                raise
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        counts[within is not None] += 1
        assert within in (None, expected), room
        assert step() == expected, room
    print(*counts)


if __name__ == "__main__":
    main(sys.argv[1])
