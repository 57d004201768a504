"""How many operations per second attention does on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from multihead.cli.elements import store
from multihead.distributed.cost import BACKWARD, FORWARD
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

LENGTH, HEADS = 2048, 4  # of what is measured: of longer ones a second does no more
TURNS = 5


def measured(head_dim: int, dtype: str) -> tuple[float, float]:
    """Return the operations per second of attention's forward and backward pass.

    Examples
    --------
    >>> forward, backward = measured(8, "float32")
    >>> forward > 1e6 and backward > 1e6
    True
    """
    rng = np.random.default_rng(0)
    shape = (1, HEADS, LENGTH, head_dim)
    q, k, v, d_out = (store(rng.standard_normal(shape), dtype) for _ in range(4))
    _, cache = scaled_dot_product_attention(q, k, v, return_cache=True)
    product = 2.0 * HEADS * LENGTH**2 * head_dim
    forward = _seconds(lambda: scaled_dot_product_attention(q, k, v))
    backward = _seconds(lambda: scaled_dot_product_attention_backward(d_out, cache))
    return FORWARD * product / forward, BACKWARD * product / backward


def _seconds(call: Callable[[], Any]) -> float:
    call()
    found = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)
