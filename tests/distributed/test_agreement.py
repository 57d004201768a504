"""Faults that one rank brings: every rank ends with an error that says so, and none hangs."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest

from multihead.distributed import ring_attention, ring_attention_backward, threads

pytestmark = pytest.mark.timeout(60)

X = np.ones((1, 2, 6, 4), np.float32)


def errors(program: Any, size: int = 3, timeout: float = 20.0) -> list[str]:
    """What each rank raised."""

    def caught(ranks: threads.ThreadCommunicator) -> str:
        try:
            program(ranks)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    return threads.run(size, caught, timeout)


@pytest.mark.parametrize(
    ("wrong", "options", "message"),
    [
        (X[:, :1], {}, r"query: expected \(1, 2, 4\), as on rank 0, got \(1, 1, 4\) on rank 1"),
        (X[..., :2], {}, r"query: expected \(1, 2, 4\), as on rank 0, got \(1, 2, 2\) on rank 1"),
        (X.astype(np.float64), {}, r"dtype: expected \('float32', .* got \('float64', .* rank 1"),
        (X, {"is_causal": True}, r"is_causal: expected 0.0, as on rank 0, got 1.0 on rank 1"),
        (X, {"window": 3}, r"window: expected \(-1, -1\), as on rank 0, got \(3, 3\) on rank 1"),
        (X, {"key_lengths": [5]}, r"key_lengths: expected None, as on rank 0, got \w+ on rank 1"),
        (X, {"seed": 3}, r"seed: expected None, as on rank 0, got 3 on rank 1"),
        (X, {"attn_mask": np.ones((6, 18), bool)}, r"attn_mask: expected None, as on rank 0"),
        (X, {"sharding": "zigzag"}, r"sharding: expected contiguous, as on rank 0, got zigzag"),
    ],
)
def test_what_differs_is_named_on_every_rank(
    wrong: np.ndarray, options: dict[str, Any], message: str
) -> None:
    def program(ranks: threads.ThreadCommunicator) -> None:
        x, more = (wrong, options) if ranks.rank == 1 else (X, {})
        ring_attention(x, x, x, communicator=ranks, **more)

    found = errors(program)
    assert len(set(found)) == 1
    assert re.search("^ValueError: " + message, found[0]), found[0]


def test_what_one_rank_gets_wrong_ends_all() -> None:
    def program(ranks: threads.ThreadCommunicator) -> None:
        value = X[:, :, :-1] if ranks.rank == 2 else X
        ring_attention(X, X, value, communicator=ranks)

    own = "value: expected (1, 2, 6, Dv), got (1, 2, 5, 4)"
    told = f"ValueError: rank 2: expected arguments that fit, got ValueError: {own}"
    assert errors(program) == [told, told, f"ValueError: {own}"]


def test_a_wrong_mask_on_one_rank_ends_all() -> None:
    def program(ranks: threads.ThreadCommunicator) -> None:
        mask = np.ones((6, 18 + (ranks.rank == 0)), bool)
        ring_attention(X, X, X, mask, communicator=ranks)

    found = errors(program)
    assert found[0].startswith("ValueError: attn_mask: expected a shape that broadcasts to")
    assert found[1] == found[2]
    assert found[1].startswith("ValueError: rank 0: expected arguments that fit, got ValueError")


def test_a_wrong_gradient_on_one_rank_ends_all() -> None:
    def program(ranks: threads.ThreadCommunicator) -> None:
        out, cache = ring_attention(X, X, X, communicator=ranks, return_cache=True)
        ring_attention_backward(out if ranks.rank else out[:, :, 1:], cache)

    found = errors(program)
    assert found[0] == "ValueError: d_out: expected (1, 2, 6, 4), got (1, 2, 5, 4)"
    assert all("rank 0: expected arguments that fit" in said for said in found[1:])


def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_said() -> None:
    late = threading.Event()

    def program(ranks: threads.ThreadCommunicator) -> None:
        if ranks.rank == 0:
            late.wait(20)
        else:
            try:
                ring_attention(X, X, X, communicator=ranks)
            finally:
                late.set()

    assert errors(program, 2, timeout=0.3) == ["", "TimeoutError: rank 1 waited 0.3 s for rank 0"]


def test_a_rank_that_fails_ends_those_that_wait_for_it() -> None:
    said: list[str] = []

    def program(ranks: threads.ThreadCommunicator) -> None:
        if ranks.rank == 1:
            raise RuntimeError("a disk is full")
        try:
            ring_attention(X, X, X, communicator=ranks)
        except (ConnectionError, TimeoutError) as error:
            said.append(str(error))

    with pytest.raises(RuntimeError, match="a disk is full"):
        threads.run(3, program, timeout=20)
    assert said == ["rank 1 ended with RuntimeError: a disk is full"] * 2


def test_what_is_no_communicator_or_cache_is_named() -> None:
    with pytest.raises(TypeError, match=r"communicator: expected a Communicator \(.*got NoneType"):
        ring_attention(X, X, X, communicator=None)
    with pytest.raises(ValueError, match="cache: expected one of a call with return_cache=True"):
        ring_attention_backward(X, None)
