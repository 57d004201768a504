"""Attention whose sequences are shared by ranks, beside one process's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from multihead.distributed import Communicator, ContextParallel, threads
from multihead.torch import context_parallel_attention, scaled_dot_product_attention
from torch_ranks import H, L, N, Result, S, assert_near, in_threads

pytestmark = pytest.mark.timeout(60)


def tensors_of(dtype: torch.dtype, key_heads: int = H) -> Result:
    made = {
        "query": torch.randn(N, H, L, 8),
        "key": torch.randn(N, key_heads, S, 8),
        "value": torch.randn(N, key_heads, S, 5),
        "mask": torch.randn(1, H, L, S),
        "row": torch.randn(N, 1, 1, S),
        "sinks": torch.randn(H),
        "d_out": torch.randn(N, H, L, 5),
        "d_lse": torch.randn(N, H, L),
    }
    return {name: x.to(dtype) for name, x in made.items()}


def solved(given: Result, attend: Callable[..., Any], has: set[str], **options: Any) -> Result:
    """Results and gradients of a call."""
    asked = {name: x for name, x in given.items() if name in {"query", "key", "value"} | has}
    leaves = {name: x.clone().requires_grad_() for name, x in asked.items()}
    inputs = [leaves[name] for name in ("query", "key", "value")]
    rest = {"attn_mask": leaves.get("mask", leaves.get("row")), "sinks": leaves.get("sinks")}
    out = attend(*inputs, **rest, **options)
    found: Result = {}
    loss = torch.zeros((), dtype=given["query"].dtype)
    if options.get("return_lse"):
        out, found["lse"] = out
        loss = loss + (found["lse"] * given["d_lse"]).sum()
    found["out"] = out
    (loss + (out * given["d_out"]).sum()).backward()
    found |= {f"d_{name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return {name: x.detach() for name, x in found.items()}


def together(parallel: ContextParallel, found: Result) -> Result:
    """Put parts together, and add up what all ranks have a gradient of."""
    for name, x in found.items():
        if name == "d_sinks" or x.shape[-2] == 1:
            parallel.sum(x.numpy())
        else:
            found[name] = parallel.gather(x, 2)
    return found


AXES = {"query": 2, "key": 2, "value": 2, "mask": 2, "d_out": 2, "d_lse": 2}
CALLS: dict[str, tuple[set[str], dict[str, Any]]] = {
    "plain": (set(), {}),
    "causal": (set(), {"is_causal": True, "return_lse": True}),
    "mask": ({"mask"}, {"scale": 0.3}),
    "row": ({"row"}, {}),
    "sinks": ({"sinks"}, {"window": (7, 3), "softcap": 2.0}),
}


@pytest.mark.parametrize("scheme", ["ring", "all_to_all"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_function_and_its_gradients(call: str, scheme: Any, dtype: torch.dtype) -> None:
    has, options = CALLS[call]
    given = tensors_of(dtype)
    expected = solved(given, scaled_dot_product_attention, has, **options)

    def program(ranks: Communicator) -> Result:
        parallel = ContextParallel(ranks, scheme, "zigzag")
        own = {k: parallel.shard(x, AXES[k]) if k in AXES else x for k, x in given.items()}
        found = solved(own, context_parallel_attention, has, parallel=parallel, **options)
        return together(parallel, found)

    for found in in_threads(3, program):
        assert_near(found, expected)


def test_half_precision_and_autocast() -> None:
    given = tensors_of(torch.float32)

    def program(ranks: Communicator) -> Result:
        parallel = ContextParallel(ranks)
        own = {k: parallel.shard(x, AXES[k]) if k in AXES else x for k, x in given.items()}
        with torch.autocast("cpu", torch.bfloat16):
            cast = solved(own, context_parallel_attention, set(), parallel=parallel)
        half = {k: x.bfloat16() for k, x in own.items()}
        plain = solved(half, context_parallel_attention, set(), parallel=parallel)
        assert cast["out"].dtype == plain["out"].dtype == torch.bfloat16
        assert cast["d_key"].dtype == torch.float32
        assert torch.equal(cast["out"], plain["out"])
        return {k: parallel.gather(x, 2).float() for k, x in plain.items()}

    half = {k: x.bfloat16() for k, x in given.items()}
    expected = {k: x.float() for k, x in solved(half, scaled_dot_product_attention, set()).items()}
    for found in in_threads(2, program):
        assert_near(found, expected, 2**-7)


def test_changes_in_place_are_seen() -> None:
    def program(ranks: Communicator) -> None:
        x = torch.randn(1, 2, 5, 4, requires_grad=True)
        key = x * 2
        out = context_parallel_attention(x, key, x, parallel=ContextParallel(ranks))
        key.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()

    in_threads(2, program)


def test_results_may_change_in_place() -> None:
    def program(ranks: Communicator) -> bool:
        x = torch.randn(1, 2, 5, 4, requires_grad=True)
        parallel = ContextParallel(ranks)
        context_parallel_attention(x, x, x, parallel=parallel).sum().backward()
        first, x.grad = x.grad, None
        out = context_parallel_attention(x, x, x, parallel=parallel)
        out.mul_(1.0).add_(3)
        out.sum().backward()
        return torch.equal(first, x.grad)

    assert in_threads(2, program) == [True, True]


def test_a_transposed_input_of_the_same_memory() -> None:
    x = torch.randn(1, 2, 6, 6)

    def gradients(attend: Callable[..., Any]) -> torch.Tensor:
        q = x.clone().requires_grad_()
        attend(q, q.transpose(2, 3), q).sum().backward()
        return q.grad

    def program(ranks: Communicator) -> torch.Tensor:
        parallel = ContextParallel(ranks)
        return gradients(lambda *qkv: context_parallel_attention(*qkv, parallel=parallel))

    expected = gradients(scaled_dot_product_attention)
    assert_near({"x": in_threads(1, program)[0]}, {"x": expected})


@pytest.mark.parametrize("scheme", ["ring", "all_to_all"])
def test_checkpoints_keep_nothing(scheme: Any) -> None:
    given = tensors_of(torch.float32)

    def program(ranks: Communicator) -> bool:
        parallel = ContextParallel(ranks, scheme)
        own = {k: parallel.shard(x, AXES[k]) if k in AXES else x for k, x in given.items()}

        def attend(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
            return context_parallel_attention(*inputs, parallel=parallel, **options)

        def again(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
            found: torch.Tensor = checkpoint(attend, *inputs, use_reentrant=False, **options)
            return found

        held: list[int] = []

        def pack(x: torch.Tensor) -> torch.Tensor:
            held.append(x.numel())
            return x.clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            hooked = solved(own, attend, {"mask", "sinks"})
        first = solved(own, attend, {"mask", "sinks"})
        second = solved(own, again, {"mask", "sinks"})
        return all(
            torch.equal(x, second[k]) and torch.equal(x, hooked[k]) for k, x in first.items()
        ) and bool(held)

    assert all(in_threads(2, program))


def test_dropout_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    given, has, options = tensors_of(torch.float64), {"mask", "sinks"}, {"dropout_p": 0.3}
    seed = torch.randint(2**63 - 1, ())
    with monkeypatch.context() as patch:
        patch.setattr("multihead.torch.dispatch._draw_seed", lambda: seed)
        expected = solved(given, scaled_dot_product_attention, has, **options)
    monkeypatch.setattr("multihead.torch.context_parallel.draw", lambda: int(seed))

    def program(ranks: Communicator) -> Result:
        parallel = ContextParallel(ranks, "ring", "zigzag")
        own = {k: parallel.shard(x, AXES[k]) if k in AXES else x for k, x in given.items()}
        found = solved(own, context_parallel_attention, has, parallel=parallel, **options)
        return together(parallel, found)

    for found in in_threads(3, program):
        assert_near(found, expected)


def test_rank_0_draws_the_seed() -> None:
    x = torch.randn(1, 2, 40, 4)

    def program(ranks: Communicator) -> torch.Tensor:
        parallel = ContextParallel(ranks)
        part = parallel.shard(x, 2)
        out = context_parallel_attention(part, part, part, None, 0.4, parallel=parallel)
        return parallel.gather(out, 2)

    first, again = in_threads(3, program), in_threads(3, program)
    assert all(torch.equal(x, first[0]) for x in first)
    assert not torch.equal(first[0], again[0])


REFUSED: dict[str, tuple[Callable[[torch.Tensor, ContextParallel], Any], Any, str]] = {
    "device": (lambda x, p: [x, x.to("meta"), x, None, p], ValueError, "key: expected a dense"),
    "array": (lambda x, p: [x, x, x.detach().numpy(), None, p], TypeError, "value: expected a ten"),
    "mask": (lambda x, p: [x, x, x, torch.zeros(3, 3), p], ValueError, "attn_mask: expected a sh"),
    "parallel": (lambda x, p: [x, x, x, None, p.communicator], TypeError, "parallel: expected a C"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, error, message = REFUSED[case]

    def program(ranks: Communicator) -> None:
        x = torch.randn(1, 2, 5, 4, requires_grad=True)
        query, key, value, mask, parallel = make(x, ContextParallel(ranks))
        with pytest.raises(error, match=message):
            context_parallel_attention(query, key, value, mask, parallel=parallel)

    in_threads(2, program)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize("case", ["device", "array", "slopes"])
def test_what_one_rank_refuses_all_hear_of(case: str, mesh: bool, dropout_p: float) -> None:
    def program(ranks: Communicator) -> None:
        parallel = ContextParallel(ranks)
        if mesh:
            row, column = divmod(ranks.rank, 2)
            inner = threads.part_of(ranks, [2 * row, 2 * row + 1])
            around = threads.part_of(ranks, [column, column + 2])
            parallel = ContextParallel(inner, "all_to_all", ring=around)
        x, slopes = torch.randn(1, 2, 5, 4, requires_grad=True), torch.ones(2)
        given: Any = [x, x, x, None]
        error, message = ValueError, r"rank \d: expected arguments that fit"
        if ranks.rank == 1:
            if case == "slopes":
                slopes.requires_grad_()
                message = "alibi_slopes: expected slopes without"
            else:
                make, error, message = REFUSED[case]
                *given, _ = make(x, parallel)
        with pytest.raises(error, match=message):
            context_parallel_attention(*given, dropout_p, parallel=parallel, alibi_slopes=slopes)

    in_threads(4 if mesh else 2, program)


def test_a_refused_call_draws_nothing() -> None:
    def program(ranks: Communicator) -> bool:
        parallel, x = ContextParallel(ranks), torch.randn(1, 2, 5, 4)
        ranks.sum(np.zeros(1))  # the others have drawn, too
        before = torch.get_rng_state()
        mask = torch.ones(5 - ranks.rank, 10, dtype=torch.bool)
        with pytest.raises(ValueError, match="attn_mask"):
            context_parallel_attention(x, x, x, mask, 0.3, parallel=parallel)
        return torch.equal(torch.get_rng_state(), before)

    assert in_threads(2, program) == [True, True]


def test_dropout_that_differs_is_named() -> None:
    def program(ranks: Communicator) -> None:
        parallel, x = ContextParallel(ranks), torch.randn(1, 2, 5, 4)
        with pytest.raises(ValueError, match=r"dropout_p: expected 0\.0, as on rank 0, got 0\.3"):
            context_parallel_attention(x, x, x, None, 0.3 * ranks.rank, parallel=parallel)

    in_threads(2, program)


def test_a_backward_that_one_rank_refuses_all_hear_of() -> None:
    def program(ranks: Communicator) -> None:
        parallel, x = ContextParallel(ranks), torch.randn(1, 2, 5, 4, requires_grad=True)
        given = 1 * x
        out = context_parallel_attention(given, given, given, parallel=parallel)
        error, message = ValueError, "rank 1: .* got RuntimeError"
        if ranks.rank == 1:
            given.detach().zero_()
            error, message = RuntimeError, "modified by an inplace operation"
        with pytest.raises(error, match=message):
            out.sum().backward()

    in_threads(2, program)


def test_transforms_and_second_derivatives_are_refused() -> None:
    def program(ranks: Communicator) -> None:
        parallel = ContextParallel(ranks)
        x = torch.randn(1, 2, 5, 4, requires_grad=True)

        def attend(x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = context_parallel_attention(x, x, x, parallel=parallel)
            return found

        with pytest.raises(ValueError, match="outside of function transforms"):
            torch.func.grad(lambda x: attend(x).sum())(x.detach())
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(attend(x).sum(), x, create_graph=True)
        out = attend(x)
        with pytest.raises(ValueError, match="one gradient at a time"):
            torch.autograd.grad(out, x, torch.ones(3, *out.shape), is_grads_batched=True)

    in_threads(1, program)
