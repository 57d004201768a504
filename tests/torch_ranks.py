"""What ranks that are threads find with PyTorch, beside one process's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from multihead.distributed import Communicator, threads

N, H, L, S = 2, 6, 29, 23  # sequences, heads, queries and keys
SECONDS = 20.0  # that a rank waits
Result = dict[str, torch.Tensor]


def assert_near(found: Result, expected: Result, bound: float = 1e-6) -> None:
    """Whether all is there, and near, of the largest entry."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].shape == x.shape, name
        largest = max(float(x.abs().max()), 1e-2) if x.numel() else 1.0
        difference = float((found[name] - x).abs().max()) if x.numel() else 0.0
        assert difference <= bound * largest, f"{name}: {difference / largest:.1e}"


def in_threads(size: int, program: Callable[[Communicator], Any]) -> list[Any]:
    return threads.run(size, program, timeout=SECONDS)
