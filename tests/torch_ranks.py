"""What ranks that are threads find with PyTorch, beside one process's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from multihead.distributed import Communicator, threads

N, H, L, S = 2, 6, 29, 23  # sequences, heads, queries and keys
SECONDS = 20.0  # that a rank waits
Result = dict[str, torch.Tensor]


def apart(x: torch.Tensor, y: torch.Tensor) -> float:
    """How far they are apart, of the largest entry."""
    if not x.numel():
        return 0.0
    return float((x.double() - y.double()).abs().max()) / max(float(y.abs().max()), 1e-2)


def assert_near(found: Result, expected: Result, bound: float = 1e-6) -> None:
    """Whether all is there, and near."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].shape == x.shape, name
        assert apart(found[name], x) <= bound, f"{name}: {apart(found[name], x):.1e}"


def assert_as_one(found: Result, expected: Result, exact: Result, bound: float = 1e-6) -> None:
    """Whether all is near what one process finds, or as near to float64 as that is."""
    assert found.keys() == expected.keys() == exact.keys()
    for name, x in expected.items():
        assert found[name].shape == x.shape, name
        if apart(found[name], x) > bound:
            here, there = apart(found[name], exact[name]), apart(x, exact[name])
            assert here <= max(bound, there), f"{name}: {here:.1e}, of one process {there:.1e}"


def in_threads(size: int, program: Callable[[Communicator], Any]) -> list[Any]:
    return threads.run(size, program, timeout=SECONDS)
