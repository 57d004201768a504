"""Ring attention on ranks that are threads, beside one process and the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sharded_problem import GRADIENTS, OUTPUTS, PROBLEMS, Problem, sizes, solve, together, whole

import score_options
from multihead import functional, reference
from multihead.distributed import (
    Communicator,
    gather,
    ring_attention,
    ring_attention_backward,
    shard,
    threads,
)
from tolerance import CANCELLED, FORWARD, GRADIENT, assert_close, error, tolerance

pytestmark = pytest.mark.timeout(60)

BOUND = {"float32": 1e-6, "float64": 1e-13}
SIZES = [1, 2, 3, 4]


def solved(problem: Problem, size: int, sharding: str) -> list[dict[str, np.ndarray]]:
    return threads.run(size, lambda ranks: solve(ranks, problem, sharding), timeout=20)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
def test_any_number_of_ranks_gives_what_one_process_does(problem: Problem, sharding: str) -> None:
    expected = whole(problem)
    half = problem.dtype not in BOUND or problem.of_keys
    for size in SIZES:
        found = together(problem, sharding, solved(problem, size, sharding))
        assert found.keys() == expected.keys()
        for name, x in found.items():
            kind = FORWARD if name in OUTPUTS else GRADIENT
            dtype = problem.of_keys or problem.dtype
            bound = tolerance(kind, dtype) if half else BOUND[problem.dtype]
            assert x.dtype == expected[name].dtype
            scale = CANCELLED * sizes(problem, expected).get(name, 0.0)
            assert_close(x, expected[name], bound, f"{name} on {size} ranks", scale=scale)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if not p.packed], ids=str)
def test_errors_against_the_oracle_are_those_of_one_process(problem: Problem) -> None:
    arrays, options = problem.arrays(), problem.called()
    options.pop("enable_gqa", None)
    inputs = [arrays[name].astype(np.float64) for name in ("query", "key", "value", "d_out")]
    result = score_options.oracle(*inputs[:3], options)
    exact = reference.attention_backward(result, inputs[3], d_lse=arrays["d_lse"])
    found = together(problem, "zigzag", solved(problem, 3, "zigzag"))
    dtype = problem.of_keys or problem.dtype
    for name, x in (("out", result.out), ("lse", result.lse)):
        assert_close(found[name], x, tolerance(FORWARD, dtype), name)
    for name in ("query", "key", "value"):
        x = {"query": exact.q, "key": exact.k, "value": exact.v}[name]
        assert_close(found[name], x, tolerance(GRADIENT, dtype), name)


@pytest.mark.parametrize("problem", PROBLEMS[2:5], ids=str)
def test_runs_give_the_same_bits(problem: Problem) -> None:
    runs = [solved(problem, 3, "zigzag") for _ in range(3)]
    for run in runs[1:]:
        for here, there in zip(run, runs[0], strict=True):
            assert {name: x.tobytes() for name, x in here.items()} == {
                name: x.tobytes() for name, x in there.items()
            }


def test_one_rank_gives_the_bits_of_one_process() -> None:
    problem = Problem(("causal", "dropout", "alibi"))
    found, expected = solved(problem, 1, "contiguous")[0], whole(problem)
    for name in ("out", *GRADIENTS[:3]):
        assert found[name].tobytes() == expected[name].tobytes(), name


def test_a_seed_is_drawn_once_for_all_ranks() -> None:
    problem = Problem(("dropout",), options={"seed": None})
    found = [together(problem, "contiguous", solved(problem, 2, "contiguous")) for _ in range(2)]
    assert error(found[0]["out"], found[1]["out"]) > 0.01


def test_large_scores_lose_nothing_to_the_logarithms() -> None:
    """A log-sum of 500 in float32 says weights to 3e-5 only."""
    problem = Problem(("causal",), 300, 300, options={"scale": 100.0})
    found, expected = together(problem, "zigzag", solved(problem, 4, "zigzag")), whole(problem)
    for name in ("out", *GRADIENTS[:3]):
        assert_close(found[name], expected[name], 1e-6, name)


def test_arrays_of_other_libraries_stay_of_their_kind() -> None:
    torch = pytest.importorskip("torch")
    x = torch.linspace(-1, 1, 2 * 9 * 8).reshape(1, 2, 9, 8).to(torch.bfloat16)

    def program(ranks: Communicator) -> tuple[Any, ...]:
        part = shard(x, ranks)
        out, lse, cache = ring_attention(
            part, part, part, communicator=ranks, return_lse=True, return_cache=True
        )
        return out, lse, gather(out, ranks), *ring_attention_backward(out, cache)

    expected = functional.scaled_dot_product_attention(x, x, x)
    for out, lse, whole_out, *gradients in threads.run(2, program, timeout=20):
        assert {y.dtype for y in (out, whole_out, *gradients)} == {torch.bfloat16}
        assert lse.dtype == torch.float32
        assert torch.allclose(whole_out.float(), expected.float(), atol=8e-3)
