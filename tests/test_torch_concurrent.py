"""PyTorch's callers at once: forward and backward by several threads, on shared and own modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from callers import CALLERS, at_once
from multihead.torch import MultiheadAttention, attention, scaled_dot_product_attention, varlen_attn
from tolerance import GRADIENT, assert_close, tolerance

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("changing")]
Tensors = list[torch.Tensor]


def inputs(number: int, *shape: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(number)
    return torch.randn(*shape, generator=made).requires_grad_()


def gradients(out: torch.Tensor, *wanted: torch.Tensor) -> Tensors:
    """The output and gradients of its elements' sum, each with another factor."""
    factors = torch.linspace(-1, 2, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, wanted, factors)]


def same(found: Tensors, expected: Tensors) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


SHARED = MultiheadAttention(32, 4, batch_first=True, add_bias_kv=True)
CACHED = MultiheadAttention(32, 4, batch_first=True).eval()


def of_a_shared_module(i: int) -> Tensors:
    x, memory = inputs(i, 2, 30 + i, 32), inputs(i + 1, 2, 70, 32)
    out, weights = SHARED(x, memory, memory, need_weights=i % 2 == 0)
    kept = [] if weights is None else [weights.detach()]
    return kept + gradients(out, x, memory, *SHARED.parameters())


def of_own_modules(i: int) -> Tensors:
    module, x = copy.deepcopy(SHARED), inputs(i, 2, 40, 32)
    module(x, x, x, is_causal=True, need_weights=False)[0].sum().backward()
    return [x.grad, *(p.grad for p in module.parameters())]


def of_functions(i: int) -> Tensors:
    q, k, v = (inputs(j, 2, 4, 60 + i, 16) for j in range(3))
    with attention():
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    few = scaled_dot_product_attention(q[:, :, :1], k, v)
    return gradients(out, q, k, v) + gradients(few, q, k, v)


def of_varlen(i: int) -> Tensors:
    ends = torch.tensor([0, 20, 20, 50 + i], dtype=torch.int32)
    q, k, v = (inputs(j, 50 + i, 4, 16) for j in range(3))
    return gradients(varlen_attn(q, k, v, ends, ends, 30 + i, 30 + i), q, k, v)


def of_steps(i: int) -> Tensors:
    cache, outs = CACHED.new_kv_cache(2, 40), []
    with torch.inference_mode():
        for n in (20, 1, 1, 3):
            x = inputs(i + n, 2, n, 32).detach()
            outs.append(CACHED(x, x, x, is_causal=True, need_weights=False, kv_cache=cache)[0])
    return outs


WORK = [of_a_shared_module, of_own_modules, of_functions, of_varlen, of_steps]


@pytest.mark.parametrize("work", WORK)
def test_each_caller_has_the_results_that_it_has_alone(work: Callable[[int], Tensors]) -> None:
    expected = [work(i) for i in range(CALLERS)]
    for _ in range(2):
        assert all(map(same, at_once(work), expected))


def test_all_kinds_of_calls_at_once() -> None:
    def work(i: int) -> Tensors:
        return WORK[i % len(WORK)](i)

    expected = [work(i) for i in range(CALLERS)]
    for _ in range(2):
        assert all(map(same, at_once(work), expected))


def test_parameters_that_callers_share_get_the_sum_of_all() -> None:
    module = copy.deepcopy(SHARED)
    xs = [inputs(i, 2, 30 + i, 32) for i in range(CALLERS)]

    def work(i: int) -> None:
        for _ in range(2):
            module(xs[i], xs[i], xs[i])[0].square().sum().backward()

    terms = []
    for i in range(CALLERS):
        module.zero_grad()
        work(i)
        terms.append([p.grad.double().numpy() for p in module.parameters()])
    module.zero_grad()
    at_once(work)
    for i, (name, p) in enumerate(module.named_parameters()):
        each = np.stack([term[i] for term in terms])
        scale = float(np.abs(each).sum(axis=0).max())
        bound = tolerance(GRADIENT, "float32")
        assert_close(p.grad.numpy(), each.sum(axis=0), bound, name, scale=scale)


def test_one_thread_goes_backward_from_what_another_left() -> None:
    module = copy.deepcopy(SHARED)
    xs = [inputs(i, 2, 30 + i, 32) for i in range(CALLERS)]

    def backward(i: int, out: torch.Tensor) -> Tensors:
        return gradients(out, xs[i], *module.parameters())

    def forward(i: int) -> torch.Tensor:
        return module(xs[i], xs[i], xs[i], need_weights=False)[0]

    expected = [backward(i, forward(i)) for i in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as others:

        def work(i: int) -> Tensors:
            return others.submit(backward, i, forward(i)).result(60)

        for _ in range(2):
            assert all(map(same, at_once(work), expected))
