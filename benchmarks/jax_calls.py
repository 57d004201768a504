"""Attention under `jax.jit`: JAX's own and ours, and the NumPy face on the same arrays.

XLA's threads are as many as the processors that it finds when it starts, whatever the run says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import numpy as np

from benchmarks import native
from benchmarks.measure import DisagreementError, compare
from benchmarks.problem import Array
from benchmarks.suite import TOLERANCE
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from multihead.jax import dot_product_attention

OURS, JAX, NUMPY = "ours", "JAX", "NumPy's face"
HEAD_DIM = 64


def normal(seed: int, *shape: int) -> Array:
    """Draw numbers."""
    drawn: Array = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return drawn


class Jitted:
    """A jitted function of some arrays, until its results are there."""

    def __init__(self, function: Callable[..., Any], *arrays: Any) -> None:
        self.run, self.arrays = jax.jit(function), jax.device_put(arrays)
        self.found: Any = None

    def __call__(self) -> None:
        """Run it."""
        self.found = jax.block_until_ready(self.run(*self.arrays))

    def results(self) -> dict[str, Array]:
        """Return what the last call produced."""
        return named(jax.tree.leaves(self.found))


class Numpy:
    """The NumPy face on arrays (N, L, H, D), as they lie."""

    def __init__(self, training: bool, *arrays: Array) -> None:
        self.training = training
        self.q, self.k, self.v, self.d_out = (x.swapaxes(1, 2) for x in arrays)
        self.found: tuple[Any, ...] = ()

    def __call__(self) -> None:
        """Run forward, and backward in training."""
        inputs = self.q, self.k, self.v
        if not self.training:
            self.found = (scaled_dot_product_attention(*inputs),)
            return
        out, kept = scaled_dot_product_attention(*inputs, return_cache=True)
        gradients = scaled_dot_product_attention_backward(self.d_out, kept)
        self.found = (out, *gradients[:3])

    def results(self) -> dict[str, Array]:
        """Return what the last call produced, (N, L, H, D) each."""
        return named([x.swapaxes(1, 2) for x in self.found])


Step = Jitted | Numpy


def named(found: list[Any]) -> dict[str, Array]:
    """Name results: out, and in training gradients."""
    names = ("out", "d_query", "d_key", "d_value")
    return {name: np.asarray(x) for name, x in zip(names, found, strict=False)}


def training_step(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Return attention and its gradients as one function of q, k, v and the gradient of out."""

    def step(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        out, backward = jax.vjp(attend, q, k, v)
        return out, backward(d_out)

    return step


def contenders(length: int, heads: int, training: bool) -> dict[str, Step]:
    """Return the three, which have run once and agree: ours has the NumPy face's bits.

    Raises
    ------
    DisagreementError
        If they do not.
    """
    arrays = [normal(seed, 1, length, heads, HEAD_DIM) for seed in range(4)]
    given = arrays if training else arrays[:3]
    functions = {OURS: dot_product_attention, JAX: jax.nn.dot_product_attention}
    steps: dict[str, Step] = {
        name: Jitted(training_step(attend) if training else attend, *given)
        for name, attend in functions.items()
    }
    steps[NUMPY] = Numpy(training, *arrays)
    for step in steps.values():
        step()
    check({name: step.results() for name, step in steps.items()})
    return steps


def check(results: Mapping[str, Mapping[str, Array]]) -> None:
    """Compare the others' results with ours."""
    ours = results[OURS]
    compare(ours, results[JAX], TOLERANCE)
    for name, x in results[NUMPY].items():
        if not np.array_equal(ours[name], x):
            raise DisagreementError(f"{name}: not the bits of the NumPy face")


@cache
def register(name: str) -> str:
    """Make XLA know a call of `native/xla_calls.cpp`; return what XLA calls it.

    Raises
    ------
    benchmarks.native.CompilerError
        If there is no compiler.
    """
    flags = ["-isystem", jax.ffi.include_dir()]
    path = native.build("xla-calls", [native.HERE / "xla_calls.cpp"], flags)
    handler = jax.ffi.pycapsule(getattr(ctypes.CDLL(str(path)), name))
    target = f"multihead_bench_{name}"
    jax.ffi.register_ffi_target(target, handler, platform="cpu")
    return target
