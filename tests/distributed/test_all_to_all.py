"""All-to-all attention on ranks that are threads, alone and with a ring around it."""

from __future__ import annotations

import numpy as np
import pytest
from sharded_problem import GRADIENTS, OUTPUTS, PROBLEMS, H, Problem, sizes, solve, together, whole

from multihead.distributed import Communicator, all_to_all_attention, threads
from multihead.distributed.heads import shares
from tolerance import CANCELLED, FORWARD, GRADIENT, assert_close, tolerance

pytestmark = pytest.mark.timeout(60)

BOUND = {"float32": 1e-6, "float64": 1e-13}


def check(problem: Problem, found: dict[str, np.ndarray], note: str) -> None:
    expected = whole(problem)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        kind = FORWARD if name in OUTPUTS else GRADIENT
        dtype = problem.of_keys or problem.dtype
        bound = BOUND.get(dtype, 0.0) or tolerance(kind, dtype)
        scale = CANCELLED * sizes(problem, expected).get(name, 0.0)
        assert x.dtype == expected[name].dtype
        assert_close(x, expected[name], bound, f"{name} {note}", scale=scale)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
def test_any_number_of_ranks_gives_what_one_process_does(problem: Problem, sharding: str) -> None:
    for size in (1, 2, 3, 4):
        parts = threads.run(
            size, lambda ranks: solve(ranks, problem, sharding, "all-to-all"), timeout=20
        )
        check(problem, together(problem, sharding, parts), f"on {size} ranks")


def mesh_of(ranks: Communicator, heads: int) -> tuple[Communicator, Communicator]:
    """The rows and columns of a mesh of threads: who exchanges heads, and who is in the ring."""
    row, column = divmod(ranks.rank, heads)
    return (
        threads.part_of(ranks, [row * heads + i for i in range(heads)]),
        threads.part_of(ranks, list(range(column, ranks.size, heads))),
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize(("rings", "heads"), [(2, 2), (3, 2), (2, 3)])
def test_a_mesh_gives_what_one_process_does(problem: Problem, rings: int, heads: int) -> None:
    def program(ranks: Communicator) -> dict[str, np.ndarray]:
        across, around = mesh_of(ranks, heads)
        return solve(across, problem, "zigzag", "all-to-all", around)

    parts = threads.run(rings * heads, program, timeout=20)
    check(problem, together(problem, "zigzag", parts, rings), f"on {rings} x {heads} ranks")


@pytest.mark.parametrize("problem", [Problem(("causal", "dropout", "alibi"), key_heads=1)], ids=str)
def test_without_a_ring_bits_are_those_of_one_process(problem: Problem) -> None:
    expected = whole(problem)
    parts = threads.run(3, lambda ranks: solve(ranks, problem, "zigzag", "all-to-all"), timeout=20)
    found = together(problem, "zigzag", parts)
    for name in ("out", GRADIENTS[0]):
        assert found[name].tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("heads", "key_heads"), [(8, 8), (8, 4), (8, 2), (8, 1), (12, 3)])
def test_every_head_of_queries_has_its_keys(heads: int, key_heads: int, size: int) -> None:
    found = shares(heads, key_heads, size)
    assert np.concatenate(found.queries).tolist() == list(range(heads))
    for queries, keys, repeated in zip(*found, strict=True):
        group = len(queries) // len(repeated)
        used = np.repeat(keys[repeated], group)
        assert used.tolist() == (queries // (heads // key_heads)).tolist()


def test_only_heads_that_are_used_are_sent() -> None:
    """Two ranks of four query heads and one key head: the keys go once to each, unrepeated."""
    length, width = 8, 4

    def program(ranks: Communicator) -> int:
        q, k = (np.ones((1, heads, length // 2, width), np.float32) for heads in (H, 1))
        ranks.bytes_sent = 0
        all_to_all_attention(q, k, k, enable_gqa=True, communicator=ranks)
        return ranks.bytes_sent

    tokens = length // 2
    queries = tokens * (H // 2) * width * 4
    keys = 2 * tokens * width * 4
    back = tokens * (H // 2) * (width + 1) * 4
    told = threads.run(2, program, timeout=20)[0] - queries - keys - back
    assert told == 2048 + 16


def test_fewer_heads_than_ranks_are_an_error_on_all() -> None:
    def program(ranks: Communicator) -> str:
        x = np.ones((1, 2, 3, 4), np.float32)
        with pytest.raises(ValueError, match="query: expected at least 3 heads") as caught:
            all_to_all_attention(x, x, x, communicator=ranks)
        return str(caught.value)

    told = "query: expected at least 3 heads, one for each rank"
    assert all(said.startswith(told) for said in threads.run(3, program, timeout=20))
