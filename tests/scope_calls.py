"""What the tests of `multihead.torch.attention` share."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812 (as models have it)
from torch.nn.functional import scaled_dot_product_attention as by_name

from multihead.torch import scope
from tolerance import CANCELLED, TORCH, assert_close, tolerance

DOT, LAYER = scope.SCALED_DOT_PRODUCT, scope.MULTI_HEAD
FUNCTIONS = {"attribute": lambda *a, **k: F.scaled_dot_product_attention(*a, **k), "name": by_name}


def close(found: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    """Hold results in float64 against PyTorch's."""
    a, b = found.detach().numpy(), expected.detach().numpy()
    assert_close(a, b, tolerance(TORCH, "float64"), name, scale=CANCELLED)


def depth() -> int:
    """Return how many scopes there are, of whatever kind."""
    return torch._C._len_torch_function_stack()
