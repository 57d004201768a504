"""PyTorch's layer and ours with the same parameters, in float64."""

from __future__ import annotations

from typing import Any

import torch

from multihead.torch import MultiheadAttention
from tolerance import CANCELLED, assert_close


def pair(*args: Any, **kwargs: Any) -> tuple[torch.nn.MultiheadAttention, MultiheadAttention]:
    """Return PyTorch's, and ours."""
    theirs = torch.nn.MultiheadAttention(*args, dtype=torch.float64, **kwargs)
    ours = MultiheadAttention(*args, dtype=torch.float64, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def close(found: torch.Tensor, expected: torch.Tensor, bound: float = 1e-11) -> None:
    """Hold what ours computed against PyTorch's."""
    a, b = found.detach().numpy(), expected.detach().numpy()
    assert_close(a, b, bound, scale=CANCELLED)
