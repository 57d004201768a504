"""What the cost model says of bytes and memory is what a run sends and keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from multihead.distributed import (
    all_to_all_attention,
    all_to_all_attention_backward,
    ring_attention,
    ring_attention_backward,
    threads,
)
from multihead.distributed.communicator import Communicator
from multihead.distributed.cost import Cluster, Cost, Scheme, Work, cost, schemes

TIMEOUT = 60
CLUSTER = Cluster(1, bandwidth=1e9, latency=1e-4, forward=1e9, backward=2e9)


def sent_by(work: Work, scheme: Scheme) -> list[int]:
    dtype = {4: np.float32, 8: np.float64}[work.itemsize]
    ranks = scheme.ring * scheme.heads

    def program(communicator: Communicator) -> int:
        row, column = divmod(communicator.rank, scheme.heads)
        first = row * scheme.heads
        exchanging = threads.part_of(communicator, range(first, first + scheme.heads))
        around = threads.part_of(communicator, range(column, ranks, scheme.heads))
        rng = np.random.default_rng(communicator.rank)
        tokens, dim = work.length // ranks, work.head_dim
        q = rng.standard_normal((work.batch, work.heads, tokens, dim)).astype(dtype)
        k, v = rng.standard_normal((2, work.batch, work.key_heads, tokens, dim)).astype(dtype)
        options = {"enable_gqa": True, "return_cache": True}
        if scheme.heads == 1:
            out, cache = ring_attention(q, k, v, communicator=around, **options)
            backward = ring_attention_backward
        else:
            mesh = {"communicator": exchanging, "ring": around if scheme.ring > 1 else None}
            out, cache = all_to_all_attention(q, k, v, **mesh, **options)
            backward = all_to_all_attention_backward
        if work.training:
            backward(np.ones_like(out), cache)
        return exchanging.bytes_sent + around.bytes_sent

    return threads.run(ranks, program)


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_bytes_are_those_sent(ranks: int, itemsize: int, training: bool) -> None:
    work = Work(24, 2, 12, 3, 5, itemsize=itemsize, training=training)
    for scheme in schemes(work, ranks):
        found = cost(work, CLUSTER._replace(ranks=ranks), scheme)
        assert sent_by(work, scheme) == [found.sent] * ranks, scheme


def test_a_slow_network_makes_ranks_wait() -> None:
    work = Work(4096, 1, 8, 8, 64)
    fast = cost(work, CLUSTER._replace(ranks=4), Scheme(4, 1))
    slow = cost(work, CLUSTER._replace(ranks=4, bandwidth=1e3), Scheme(4, 1))
    assert fast.computing == slow.computing
    # three transfers of keys and values forward, three of them and of their gradients backward,
    # the last of which nothing hides
    shard = 1024 * 8 * 128 * 4
    sending = (3 * shard + 3 * 2 * shard + shard) / 1e3
    assert slow.seconds == pytest.approx(sending, rel=1e-2)
    assert fast.waiting == pytest.approx(shard / 1e9)


def test_computing_is_shared_out() -> None:
    work = Work(4096, 1, 8, 4, 64, causal=True)

    def of(ranks: int, scheme: Scheme) -> Cost:
        return cost(work, CLUSTER._replace(ranks=ranks), scheme)

    one = of(1, Scheme(1, 1))
    product = 2 * 8 * 64 * 4096**2 / 2
    assert one.computing == pytest.approx(product * (2 / 1e9 + 5 / 2e9))
    assert one.waiting == one.sent == 0
    for scheme in schemes(work, 8):
        assert of(8, scheme).computing == pytest.approx(one.computing / 8)
    assert of(4, Scheme(4, 1)).kept == pytest.approx(one.kept / 4)


@pytest.mark.parametrize(
    ("heads", "key_heads", "ranks", "shared"),
    [(8, 8, 4, [1, 2, 4]), (6, 2, 6, [1, 2, 6]), (9, 3, 4, [1]), (4, 1, 8, [1, 2, 4])],
)
def test_heads_are_shared_out_where_they_can_be(
    heads: int, key_heads: int, ranks: int, shared: list[int]
) -> None:
    found = list(schemes(Work(64, 1, heads, key_heads, 8), ranks))
    assert [x.heads for x in found] == shared
    assert all(math.prod(x) == ranks for x in found)
