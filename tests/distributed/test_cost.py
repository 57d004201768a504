"""What the cost model says of bytes and memory is what a run sends and keeps."""

from __future__ import annotations

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from multihead.distributed import (
    all_to_all_attention,
    all_to_all_attention_backward,
    ring_attention,
    ring_attention_backward,
    threads,
)
from multihead.distributed.clock import Clock
from multihead.distributed.communicator import Communicator
from multihead.distributed.cost import Cost, cost
from multihead.distributed.work import Cluster, Scheme, Work, schemes

TIMEOUT = 60
CLUSTER = Cluster(1, bandwidth=1e9, latency=1e-4, forward=1e9, backward=2e9)


def sent_by(work: Work, scheme: Scheme) -> list[int]:
    dtype = {2: ml_dtypes.bfloat16, 4: np.float32, 8: np.float64}[work.itemsize]
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


@pytest.mark.parametrize("bandwidth", [1e6, 1e7, 1e8])
@pytest.mark.parametrize("ranks", [2, 3])
def test_keys_travel_while_a_rank_computes_and_gradients_go_home_after_it(
    ranks: int, bandwidth: float
) -> None:
    work = Work(960 * ranks, 1, 4, 4, 64)
    cluster = CLUSTER._replace(ranks=ranks, bandwidth=bandwidth, latency=0.0, forward=2e9)
    turn = (4 * 256 * 960**2 / cluster.forward, 10 * 256 * 960**2 / cluster.backward)
    moved = 4 * 960 * 128 * 4 / bandwidth  # keys, or their gradients
    forward = (ranks - 1) * max(turn[0], moved) + turn[0]
    backward = max(turn[1], moved) + turn[1] + moved
    if ranks == 3:  # the second keys come during the second turn, its gradients go after them
        keys = max(turn[1], moved)
        second = keys + max(turn[1], moved)
        home = max(keys + moved, keys + turn[1]) + moved
        backward = max(second + turn[1], home) + moved
    found = cost(work, cluster, Scheme(ranks, 1))
    assert found.seconds == pytest.approx(forward + backward, rel=0.02)


def test_what_nothing_hides_is_waited_for() -> None:
    work = Work(4096, 1, 8, 8, 64)
    fast = cost(work, CLUSTER._replace(ranks=4), Scheme(4, 1))
    slow = cost(work, CLUSTER._replace(ranks=4, bandwidth=1e3), Scheme(4, 1))
    assert fast.computing == slow.computing
    # three transfers of keys and values forward, three of them and of their gradients backward
    shard = 1024 * 8 * 128 * 4
    assert slow.seconds == pytest.approx((3 * shard + 3 * 2 * shard) / 1e3, rel=1e-2)
    assert fast.waiting == pytest.approx(shard / 1e9, rel=0.5)  # the last gradients


def test_processors_that_carry_messages_compute_slower() -> None:
    cluster = CLUSTER._replace(bandwidth=1e6, carrying=2e6, latency=0.0)  # half of their time
    clock = Clock(cluster)
    clock.wait(clock.start(1e6))
    assert (clock.handling, clock.waiting) == (0, 1)
    clock.start(1e6)
    clock.compute(2.0)  # half a second of carrying falls into it
    assert clock.now == pytest.approx(1 + 2.5)
    clock.start(1e7)
    clock.compute(2.0)  # the message is under way all the time
    assert clock.now == pytest.approx(1 + 2.5 + 4)


def test_computing_is_shared_out() -> None:
    work = Work(4096, 1, 8, 4, 64, causal=True)

    def of(ranks: int, scheme: Scheme) -> Cost:
        return cost(work, CLUSTER._replace(ranks=ranks), scheme)

    one = of(1, Scheme(1, 1))
    product = 2 * 8 * 64 * 4096 * (4096 / 2 + 64 / 2)  # tiles on the diagonal are whole
    assert one.computing == pytest.approx(product * (2 / 1e9 + 5 / 2e9))
    assert one.waiting == one.sent == 0
    for scheme in schemes(work, 8):
        assert of(8, scheme).computing == pytest.approx(one.computing / 8)
    statistics = 3 * 4 * 4096 * 8
    given = 4096 * 64 * (8 + 2 * 4) * 4
    outputs = 2 * 4096 * 64 * 8 * 4
    assert one.kept == given + outputs + statistics
    assert of(4, Scheme(4, 1)).kept == pytest.approx(one.kept / 4)


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("scheme", [Scheme(2, 1), Scheme(1, 2), Scheme(2, 2)])  # as threads copy
def test_memory_is_what_arrays_take(
    scheme: Scheme, itemsize: int, key_heads: int, training: bool
) -> None:
    ranks = scheme.ring * scheme.heads
    work = Work(1536, 1, 4, key_heads, 64, itemsize=itemsize, training=training)
    found = cost(work, CLUSTER._replace(ranks=ranks), scheme)
    tracemalloc.start()
    try:
        sent_by(work, scheme)  # threads, which do the same at about the same time
        assert tracemalloc.get_traced_memory()[1] / ranks == pytest.approx(
            found.kept + found.passing, rel=0.2
        )
    finally:
        tracemalloc.stop()


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
