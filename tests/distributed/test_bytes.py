"""What the ranks send is what the scheme needs, to the byte."""

from __future__ import annotations

import numpy as np
import pytest
from sharded_problem import SCHEMES

from multihead.distributed import positions, shard, threads
from multihead.distributed.agreement import ROOM
from multihead.distributed.heads import shares

pytestmark = pytest.mark.timeout(60)

H, L, D, DV = 4, 48, 8, 16
LENGTHS = 16  # bytes in which a rank says how many queries and keys it has


def sent(
    size: int,
    key_heads: int,
    dtype: str,
    sharding: str,
    window: tuple[int, int] | None,
    scheme: str = "ring",
) -> list[tuple[int, int]]:
    """Bytes of forward and of backward, by rank."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal((1, heads, L, width)).astype(dtype)
        for heads, width in ((H, D), (key_heads, D), (key_heads, DV))
    )

    attend, backward = SCHEMES[scheme]

    def program(ranks: threads.ThreadCommunicator) -> tuple[int, int]:
        parts = [shard(x, ranks, sharding=sharding) for x in (q, k, v)]
        out, cache = attend(
            *parts, communicator=ranks, sharding=sharding, window=window, enable_gqa=True,
            return_cache=True,
        )  # fmt: skip
        forward, ranks.bytes_sent = ranks.bytes_sent, 0
        backward(out, cache)
        return forward, ranks.bytes_sent

    return threads.run(size, program, timeout=20)


def seen(size: int, sharding: str, window: tuple[int, int] | None) -> np.ndarray:
    """Whether a query of one rank sees a key of another: [ranks, ranks]."""
    held = [positions(L, rank, size, sharding) for rank in range(size)]
    left, right = window or (L, L)
    return np.array(
        [[((k >= q[:, None] - left) & (k <= q[:, None] + right)).any() for k in held] for q in held]
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("window", [None, (3, 0), (0, 13), (20, 20)])
@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
@pytest.mark.parametrize(("key_heads", "dtype"), [(4, "float32"), (1, "float16"), (2, "float64")])
def test_keys_travel_to_those_who_see_them_and_gradients_come_home(
    size: int, window: tuple[int, int] | None, sharding: str, key_heads: int, dtype: str
) -> None:
    sees = seen(size, sharding, window)
    token = key_heads * (D + DV)
    width, wide = np.dtype(dtype).itemsize, 8 if dtype == "float64" else 4
    found = sent(size, key_heads, dtype, sharding, window)
    for rank, (forward, backward) in enumerate(found):
        others = [r for r in range(size) if r != rank]
        tokens = len(positions(L, rank, size, sharding))
        keys = sum(tokens * token * width for r in others if sees[r, rank])
        home = sum(
            len(positions(L, r, size, sharding)) * token * wide for r in others if sees[rank, r]
        )
        assert forward == keys + (ROOM + LENGTHS) * len(others)
        assert backward == keys + home + ROOM * len(others)


def test_a_short_window_sends_to_one_neighbour() -> None:
    sees = seen(4, "contiguous", (3, 0))
    assert sees.sum() == 4 + 3


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
@pytest.mark.parametrize(("key_heads", "dtype"), [(4, "float32"), (1, "float16"), (2, "float64")])
def test_tokens_are_exchanged_for_heads_once(
    size: int, sharding: str, key_heads: int, dtype: str
) -> None:
    width, wide = np.dtype(dtype).itemsize, 8 if dtype == "float64" else 4
    of_ranks = shares(H, key_heads, size)
    found = sent(size, key_heads, dtype, sharding, None, "all-to-all")
    for rank, (forward, backward) in enumerate(found):
        others = [r for r in range(size) if r != rank]
        tokens = len(positions(L, rank, size, sharding))
        heads, keys = len(of_ranks.queries[rank]), len(of_ranks.keys[rank])
        of_others = sum(len(of_ranks.keys[r]) for r in others)
        there = tokens * (H - heads) * D * width + tokens * of_others * (D + DV) * width
        back = (L - tokens) * heads * (DV * width + wide)
        assert forward == there + back + (ROOM + LENGTHS) * len(others)
        there = tokens * (H - heads) * DV * width
        back = (L - tokens) * (heads * D * width + keys * (D + DV) * wide)
        assert backward == there + back + ROOM * len(others)
