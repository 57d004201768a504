"""Calls of BNNS that fail: -1, a reason, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnns_problem import Options, Problem
from multihead import bnns
from multihead.bnns import BNNSError


def everything(rng: np.random.Generator) -> Problem:
    """A layer with everything, and a cache of its forward."""
    sizes = {"T": 5, "S": 5, "d_model": 6, "k_dim": 6, "v_dim": 6, "batch": 2}
    made = Problem.make(
        rng,
        Options(**sizes, attention_biases=True, key_mask=True, attention="float 2", gaps=True),
    )
    made.create()
    made.forward_with_cache()
    for slot in (*made.slots.values(), *made.grads.values()):
        slot.keep_state()
    made.cache_before = made.cache.copy()
    return made


def refused(problem: Problem, call: Callable[..., int], arguments: list[Any], *words: str) -> None:
    """Assert that a call fails both ways, says why, and writes nothing."""
    assert call(*arguments, raw=True) == -1
    reason = bnns.last_error()
    for word in words:
        assert word in reason, reason
    with pytest.raises(BNNSError, match=words[0]):
        call(*arguments)
    for name, slot in (*problem.slots.items(), *problem.grads.items()):
        assert slot.untouched(), name
    assert (problem.cache == problem.cache_before).all()


def forward_refused(problem: Problem, *words: str, **given: Any) -> None:
    """Assert it of forward."""
    arguments = problem.forward_arguments(**given)
    refused(problem, bnns.BNNSApplyMultiheadAttention, arguments, *words)


def backward_refused(problem: Problem, *words: str, cached: bool = True, **given: Any) -> None:
    """Assert it of backward."""
    cache = {"backprop_cache_size": problem.cache_size, "backprop_cache": problem.cache}
    arguments = problem.backward_arguments(**((cache if cached else {}) | given))
    refused(problem, bnns.BNNSApplyMultiheadAttentionBackward, arguments, *words)
