"""Targets of attention alone: few queries against many keys, and masks."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.measure import compare
from benchmarks.problem import Array
from benchmarks.suite import TOLERANCE
from benchmarks.targets.target import Reached, Run, Target
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

KEYS = 4096
HEAD_DIM = 64
WINDOW = 256


def _normal(seed: int, heads: int, tokens: int) -> Array:
    size = (1, heads, tokens, HEAD_DIM)
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


# few queries


def _decode(queries: int, bound: float | None) -> Target:
    def measure(run: Run) -> Reached:
        if find_spec("torch") is None:
            return Reached(None, "torch is not installed")
        import torch

        q, k, v = (_normal(seed, 16, n) for seed, n in enumerate((queries, KEYS, KEYS)))
        tensors = [torch.from_numpy(array) for array in (q, k, v)]
        attend: Any = torch.nn.functional.scaled_dot_product_attention

        def theirs() -> Any:
            with torch.no_grad():
                return attend(*tensors)

        def ours() -> Any:
            return scaled_dot_product_attention(q, k, v)

        compare({"out": ours()}, {"out": theirs().numpy()}, TOLERANCE)
        return Reached(run.ratio(theirs, ours))

    return Target(
        f"decode-{queries}",
        f"attention alone, L = {queries}, S = {KEYS}, H = 16, D = {HEAD_DIM}: torch / ours",
        bound,
        measure,
        quick=True,
    )


# masks; True = attend there


def _causal() -> Array:
    return np.tri(KEYS, dtype=np.bool_)


def _causal_floats() -> Array:
    floats: Array = np.where(_causal(), np.float32(0), np.float32(-np.inf))
    return floats


def _window() -> Array:
    keys = np.arange(KEYS)
    distance: Array = keys[:, None] - keys
    return (distance < WINDOW // 2) & (distance >= -WINDOW // 2)


class _Attention:
    """Attention of 4096 queries and keys, forward, and backward in training."""

    def __init__(self, training: bool, mask: Array | None = None, causal: bool = False) -> None:
        self.q, self.k, self.v, self.d_out = (_normal(seed, 8, KEYS) for seed in range(4))
        self.training, self.mask, self.causal = training, mask, causal

    def __call__(self) -> None:
        found = scaled_dot_product_attention(
            self.q,
            self.k,
            self.v,
            self.mask,
            is_causal=self.causal,
            return_cache=self.training,
        )
        if self.training:
            scaled_dot_product_attention_backward(self.d_out, found[1])


_SETTING = f"attention alone, L = S = {KEYS}, H = 8, D = {HEAD_DIM}, infer and train"


def _explicit(name: str, what: str, mask: Callable[[], Array]) -> Target:
    def measure(run: Run) -> Reached:
        made = mask()
        found = [
            run.ratio(_Attention(training, made), _Attention(training, causal=True), parts=2)
            for training in (False, True)
        ]
        return Reached(max(found), "infer {:.2f}x, train {:.2f}x".format(*found))

    return Target(
        name, f"{_SETTING}: {what} / is_causal=True", 1.15, measure, at_most=True, quick=True
    )


def _sliding(run: Run) -> Reached:
    mask = _window()
    found = [
        run.ratio(_Attention(training), _Attention(training, mask), parts=2)
        for training in (False, True)
    ]
    return Reached(min(found), "infer {:.2f}x, train {:.2f}x".format(*found))


TARGETS = (
    _decode(1, 1.5),
    _decode(4, None),
    _explicit("mask-bool", "causal boolean mask", _causal),
    _explicit("mask-float", "causal float mask", _causal_floats),
    Target("mask-window", f"{_SETTING}: dense / window of {WINDOW}, boolean mask", 5.0, _sliding),
)
