"""Which tokens a rank holds: cut up, and put together again."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from multihead import Ragged
from multihead.distributed import gather, positions, shard, threads

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("length", [0, 1, 5, 8, 37])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
def test_every_position_is_on_one_rank(length: int, size: int, sharding: str) -> None:
    held = [positions(length, rank, size, sharding) for rank in range(size)]
    assert sorted(np.concatenate(held).tolist()) == list(range(length))
    assert max(map(len, held)) - min(map(len, held)) <= 2
    assert all((np.diff(x) > 0).all() for x in held)


def test_zigzag_evens_out_what_causal_attention_computes() -> None:
    """A query at position p sees p + 1 keys."""
    for sharding, most in (("contiguous", 1.75), ("zigzag", 1.0)):
        work = [(positions(1024, rank, 4, sharding) + 1).sum() for rank in range(4)]
        assert max(work) / np.mean(work) == pytest.approx(most, abs=0.01)


@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_undoes_shard(axis: int, sharding: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 11, 3)).astype(ml_dtypes.bfloat16)

    def back(ranks: threads.ThreadCommunicator) -> np.ndarray:
        return gather(shard(x, ranks, axis, sharding), ranks, axis, sharding)

    for found in threads.run(4, back, timeout=20):
        assert found.dtype == x.dtype
        assert found.tobytes() == x.tobytes()


def test_contiguous_parts_may_be_of_any_length() -> None:
    parts = [np.arange(3), np.arange(0), np.arange(4)]
    found = threads.run(3, lambda ranks: gather(parts[ranks.rank], ranks, 0), timeout=20)
    assert found[1].tolist() == [0, 1, 2, 0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"x: expected \[3, 2, 2\] tokens .* got \[3, 0, 4\]"):
        threads.run(3, lambda ranks: gather(parts[ranks.rank], ranks, 0, "zigzag"), timeout=20)


def test_each_packed_sequence_is_sharded() -> None:
    x = Ragged(np.arange(10.0)[:, None], [0, 7, 7, 10])
    found = threads.run(2, lambda ranks: shard(x, ranks, sharding="zigzag"), timeout=20)
    assert [part.values.ravel().tolist() for part in found] == [[0, 1, 6, 7], [2, 3, 4, 5, 8, 9]]
    assert [part.lengths.tolist() for part in found] == [[3, 0, 1], [4, 0, 2]]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="sharding: expected 'contiguous' or 'zigzag', got 'zig'"):
        positions(5, 0, 2, "zig")
    with pytest.raises(ValueError, match="rank: expected an integer from 0 to 1, got 2"):
        positions(5, 2, 2)
    with pytest.raises(ValueError, match="axis: expected an integer from -1 to 0, got 1"):
        threads.run(1, lambda ranks: shard(np.arange(3), ranks, 1), timeout=20)
    with pytest.raises(TypeError, match=r"x: expected an array \(x.values\), got Ragged"):
        threads.run(1, lambda ranks: gather(Ragged(np.ones((1, 1)), [0, 1]), ranks), timeout=20)
