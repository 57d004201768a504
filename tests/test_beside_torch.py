"""In one process with PyTorch: whoever's threads run a region, its results are the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import multihead as mh
from multihead.torch import MultiheadAttention

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def two_threads() -> Iterator[None]:
    ours, theirs = mh.get_num_threads(), torch.get_num_threads()
    mh.set_num_threads(2)
    torch.set_num_threads(2)
    yield
    mh.set_num_threads(ours)
    torch.set_num_threads(theirs)


class Mix:
    """A torch layer and ours in turn, so that torch's workers are spinning when ours are wanted."""

    def __init__(self) -> None:
        self.layer = mh.MultiheadAttention(256, 4, batch_first=True, seed=0).eval()
        self.x = np.random.default_rng(0).standard_normal((4, 256, 256)).astype(np.float32)
        self.linear, self.input = torch.nn.Linear(256, 256), torch.from_numpy(self.x)
        self.expected = self.layer(self.x, self.x, self.x)[0].copy()

    def right(self, times: int) -> bool:
        return all(self.step() for _ in range(times))

    def step(self) -> bool:
        with torch.no_grad():
            self.linear(self.input)
        return bool((self.layer(self.x, self.x, self.x)[0] == self.expected).all())


@pytest.mark.usefixtures("two_threads")
def test_results_do_not_depend_on_whose_threads() -> None:
    assert Mix().right(200)


@pytest.mark.usefixtures("two_threads")
def test_thread_counts_may_differ() -> None:
    mix = Mix()
    assert mix.right(50)
    for ours, theirs in ((3, 2), (2, 1), (1, 2), (2, 2)):
        mh.set_num_threads(ours)
        torch.set_num_threads(theirs)
        assert mix.right(30)


@pytest.mark.usefixtures("two_threads")
def test_several_callers() -> None:
    mix = Mix()
    results: list[bool] = []
    callers = [threading.Thread(target=lambda: results.append(mix.right(30))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [True] * 6


@pytest.mark.usefixtures("two_threads")
def test_a_forked_child_computes() -> None:
    mix = Mix()
    assert mix.right(100)
    child = os.fork()
    if child == 0:
        x = mix.x
        right = all((mix.layer(x, x, x)[0] == mix.expected).all() for _ in range(20))
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_tile_registers_are_nobody_s(two_threads: None) -> None:
    # both compute bfloat16 in AMX's registers where there are any, and set them up as they like
    linear = torch.nn.Linear(256, 256).bfloat16()
    layer = MultiheadAttention(256, 4, batch_first=True).bfloat16()
    x = torch.randn(4, 128, 256, dtype=torch.bfloat16)

    @torch.no_grad()
    def results() -> list[torch.Tensor]:
        attended = torch.nn.functional.scaled_dot_product_attention(*[x[:, None]] * 3)
        return [linear(x), layer(x, x, x, need_weights=False)[0], attended]

    expected = results()
    assert all(all(map(torch.equal, results(), expected)) for _ in range(50))
