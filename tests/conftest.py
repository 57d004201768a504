"""Fixtures that every test may ask for."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch; the engine has threads of its own
os.environ.setdefault("MULTIHEAD_NUM_THREADS", str(os.cpu_count() or 1))

os.environ["HF_HUB_OFFLINE"] = "1"  # models are made, and none is fetched

import hypothesis
import numpy as np
import pytest

import kernel_sets
import multihead as mh
from multihead import _native

# named by `make browser`, as it needs one, by `make distributed`, as they start many processes, and
# by `make jax`, as JAX compiles for minutes
collect_ignore = [
    "test_maps_browser.py",
    "distributed/test_faults.py",
    "distributed/test_long_context.py",
    "distributed/test_training.py",
    "test_torch_context_parallel_models.py",
    "test_jax_conformance.py",
    "test_jax_derivatives.py",
    "test_jax_devices.py",
    "test_jax_digits.py",
    "test_jax_flax.py",
    "test_jax_layer_devices.py",
    "test_jax_layer_transforms.py",
    "test_jax_peer.py",
    "test_jax_promotion.py",
]

# files of few tests that take long: they begin, so that in the end no worker is left alone with one
LONG = ("test_net", "test_digits", "test_native_digest", "test_build")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def shared() -> None:
    """Let threads share even the little that tests compute."""
    _native.set_little(0)


def _seed(request: pytest.FixtureRequest) -> int:
    return zlib.crc32(request.node.name.encode())


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Start PyTorch's generator, where a test uses PyTorch, from the name of the test."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(_seed(request))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the name of the test."""
    return np.random.default_rng(_seed(request))


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test with each number of threads."""
    before = mh.get_num_threads()
    mh.set_num_threads(request.param)
    yield request.param
    mh.set_num_threads(before)


@pytest.fixture
def changing() -> Iterator[None]:
    """Let another thread set the number of threads to this and that during the test."""
    before, done = mh.get_num_threads(), threading.Event()

    def change() -> None:
        for number in itertools.cycle((1, 2, 5, 3, 9, 1, 17)):
            mh.set_num_threads(number)
            if done.wait(0.001):
                return

    thread = threading.Thread(target=change)
    thread.start()
    yield
    done.set()
    thread.join()
    mh.set_num_threads(before)


@pytest.fixture(params=[pytest.param(name, id=f"isa-{name}") for name in kernel_sets.ALL])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with each kernel set of this machine, and those for tests alone."""
    before = _native.use_isa(request.param)
    yield request.param
    _native.use_isa(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our functions that computed a call of PyTorch's in a scope, in order."""
    from multihead.torch import scope

    made: list[str] = []

    def counted(name: str) -> None:
        inner = getattr(scope, name)

        def call(*args: Any, **how: Any) -> Any:
            found = inner(*args, **how)
            if found is not None:
                made.append(name)
            return found

        monkeypatch.setattr(scope, name, call)

    counted("scaled_dot_product_attention")
    counted("multi_head_attention_forward")
    return made
