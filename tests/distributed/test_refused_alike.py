"""What one rank gives wrong, or unlike others, all ranks refuse at once; nothing changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multihead as mh
from multihead.distributed import (
    Communicator,
    all_to_all_attention,
    gather,
    ring_attention,
    threads,
)
from multihead.distributed.agreement import agree

pytestmark = pytest.mark.timeout(60)
SECONDS = 10.0  # that a rank waits: one that is left alone fails so

X = np.random.default_rng(0).standard_normal((1, 2, 6, 4)).astype(np.float32)


def refusals(call: Callable[[Communicator, bool], Any], size: int = 2) -> list[str]:
    """What each rank says of a call that is wrong on the last of them."""

    def program(ranks: Communicator) -> str:
        with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            call(ranks, ranks.rank == size - 1)
        return f"{type(caught.value).__name__}: {caught.value}"

    said = threads.run(size, program, timeout=SECONDS)
    assert not any("Timeout" in x or "failed before" in x for x in said), said
    return said


ATTENTION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what most give, and what one does
    "dropout_p": ({"dropout_p": 0.1}, {}),
    "return_lse": ({}, {"return_lse": "yes"}),
    "return_cache": ({}, {"return_cache": 2}),
    "query_offset": ({"query_offset": 1}, {"query_offset": True}),
    "scale": ({}, {"scale": np.ones(2)}),
    "seed": (
        {"dropout_p": 0.1, "seed": np.random.default_rng(1)},
        {"dropout_p": 0.1, "seed": np.random.default_rng(2)},
    ),
    "arguments": ({}, {"query_offset": 10**3000}),
}


@pytest.mark.parametrize("attend", [ring_attention, all_to_all_attention])
@pytest.mark.parametrize("name", ATTENTION)
def test_functions(attend: Callable[..., Any], name: str) -> None:
    usual, other = ATTENTION[name]

    def call(ranks: Communicator, wrong: bool) -> None:
        attend(X, X, X, communicator=ranks, **copy.deepcopy(other if wrong else usual))

    assert all(name in x for x in refusals(call))


@pytest.mark.parametrize("attend", [ring_attention, all_to_all_attention])
@pytest.mark.parametrize("what", ["value", "attn_mask"])
def test_a_generator_is_as_it_was(attend: Callable[..., Any], what: str) -> None:
    def program(ranks: Communicator) -> bool:
        rng = np.random.default_rng(5)
        before = rng.bit_generator.state
        given: dict[str, Any] = {"dropout_p": 0.3, "seed": rng, "communicator": ranks}
        value, mask = X, np.ones((6, 12), bool)
        if ranks.rank == 1:
            value, mask = (X[:, :, :3], mask) if what == "value" else (X, mask[:4])
        with pytest.raises(ValueError, match=what):
            attend(X, X, value, mask, **given)
        unchanged = bool(rng.bit_generator.state == before)
        attend(X, X, X, **given)
        return unchanged and rng.bit_generator.state != before

    assert threads.run(2, program, timeout=SECONDS) == [True, True]


GATHERED: dict[str, tuple[Any, int, str]] = {
    "x": (X[:, :1], 2, "contiguous"),
    "dtype": (X.astype(np.float64), 2, "contiguous"),
    "axis": (X, 7, "contiguous"),
    "sharding": (X, 2, "zigzag"),
    "array": (mh.Ragged(X[0, 0], [0, 6]), 2, "contiguous"),
}


@pytest.mark.parametrize("name", GATHERED)
def test_gather(name: str) -> None:
    usual: tuple[Any, int, str] = (X, 2, "contiguous")

    def call(ranks: Communicator, wrong: bool) -> None:
        x, axis, sharding = GATHERED[name] if wrong else usual
        gather(x, ranks, axis, sharding)  # type: ignore[arg-type]

    assert all(name in x for x in refusals(call, 3))


LAYERS: dict[str, tuple[str, str]] = {
    "scheme": ("all_to_all", "contiguous"),
    "sharding": ("ring", "zigzag"),
    "'rings'": ("rings", "contiguous"),
    "'zig'": ("ring", "zig"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_shared_alike(name: str) -> None:
    def call(ranks: Communicator, wrong: bool) -> None:
        scheme, sharding = LAYERS[name] if wrong else ("ring", "contiguous")
        layer = mh.MultiheadAttention(8, 2, seed=0)
        layer.parallel(ranks, scheme=scheme, sharding=sharding)  # type: ignore[arg-type]

    assert all(name in x for x in refusals(call))


def test_what_is_the_same_is_not_refused() -> None:
    def program(ranks: Communicator) -> None:
        agree(ranks, {"scale": float("nan"), "offset": [1, 2.5, None]})

    threads.run(3, program, timeout=SECONDS)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("of a tensor"), MemoryError(), ValueError(600 * "\x1b"), ValueError("\ud800")],
    ids=["runtime", "memory", "control", "surrogate"],
)
def test_any_error_reaches_all(error: Exception) -> None:
    def program(ranks: Communicator) -> str:
        with pytest.raises(type(error) if ranks.rank else ValueError) as caught:
            agree(ranks, {}, error if ranks.rank else None)
        return str(caught.value)

    told, own = threads.run(2, program, timeout=SECONDS)
    assert own == str(error)
    assert f"rank 1: expected arguments that fit, got {type(error).__name__}" in told


@pytest.mark.parametrize("bool_mask", [True, False])
def test_a_rank_without_queries_may_give_one_row_of_a_mask(bool_mask: bool) -> None:
    mask = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)
    given = mask > -1 if bool_mask else mask
    whole, kept = mh.functional.scaled_dot_product_attention(X, X, X, given, return_cache=True)
    expected = mh.functional.scaled_dot_product_attention_backward(whole, kept, need_mask_grad=True)

    def program(ranks: Communicator) -> Any:
        has = slice(0, 6) if ranks.rank == 0 else slice(6, 6)
        part, rows = X[:, :, has], given if ranks.rank == 0 else given[:1]
        out, cache = all_to_all_attention(
            part, part, part, rows, communicator=ranks, return_cache=True
        )
        found = mh.distributed.all_to_all_attention_backward(out, cache, need_mask_grad=True)
        return out, found[3]

    (out, d_mask), (none, d_row) = threads.run(2, program, timeout=SECONDS)
    np.testing.assert_allclose(out, whole, rtol=1e-5, atol=1e-6)
    assert none.shape == (1, 2, 0, 4)
    if not bool_mask:
        np.testing.assert_allclose(d_mask, expected[3], rtol=1e-4, atol=1e-5)
        assert d_row.shape == (1, 6)
        assert not d_row.any()
