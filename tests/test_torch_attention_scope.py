"""`multihead.torch.attention`: PyTorch's functions are ours in a scope, and nowhere else."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (as models have it)
from torch.nn.functional import scaled_dot_product_attention as by_name
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from attention_models import MODELS, Vision
from multihead.torch import attention, scaled_dot_product_attention
from scope_calls import DOT, FUNCTIONS, LAYER, close, depth


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_function_is_ours_by_whatever_name(function: str, calls: list[str]) -> None:
    attend = FUNCTIONS[function]
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind()
    # PyTorch's has NaN here, or refuses both at once
    mask = torch.tensor([[True], [False], [True], [True], [True]])
    with attention():
        out = attend(q, k, v, attn_mask=mask, is_causal=True, scale=0.3)
    assert calls == ["scaled_dot_product_attention"]
    assert torch.equal(out, scaled_dot_product_attention(q, k, v, mask, 0.0, True, 0.3))
    assert not out[:, :, 1].any()
    attend(q, k, v)
    assert len(calls) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same(name: str, training: bool, calls: list[str]) -> None:
    model = MODELS[name]().double().train(training)
    inputs = [x.double().requires_grad_() for x in model.inputs()]
    results = []
    for redirected in (True, False):
        with torch.set_grad_enabled(training):
            if redirected:
                with attention():
                    out = model(*inputs)
            else:
                out = model(*inputs)
        results.append([out])
        if training:
            every = [*inputs, *(p for p in model.parameters() if p.requires_grad)]
            grad = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
            results[-1] += torch.autograd.grad(out, every, grad, allow_unused=True)
    for found, expected in zip(*results, strict=True):
        if found is not None:
            close(found, expected)
    assert len(calls) == {"vision": 2, "speech": 3}.get(name, 1)


def test_second_derivatives() -> None:
    def call(*tensors: torch.Tensor) -> torch.Tensor:
        with attention():
            return by_name(*tensors, is_causal=True)

    inputs = [torch.randn(2, 1, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_dropout_is_drawn_from_pytorch_s_generator(calls: list[str]) -> None:
    model = Vision(dropout=0.4)
    (x,) = model.inputs()
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with attention():
            outs.append(model(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    q = torch.randn(2, 3, 9, 4)
    torch.manual_seed(5)
    ours = scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    torch.manual_seed(5)
    with attention():
        assert torch.equal(by_name(q, q, q, dropout_p=0.5), ours)


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_and_no_grad(inside: bool, calls: list[str]) -> None:
    q = torch.randn(2, 3, 9, 4, requires_grad=True)
    for mode in (torch.inference_mode, torch.no_grad):
        contexts = [attention(), mode()]
        with contexts[inside], contexts[not inside]:
            out = by_name(q, q, q)
        assert not out.requires_grad
    assert len(calls) == 2


def test_scopes_nest_and_are_entered_again(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    context = attention()
    with context:
        with attention(), context:
            assert depth() == 3
            by_name(q, q, q)
        by_name(q, q, q)
    with context:
        by_name(q, q, q)
    by_name(q, q, q)
    assert len(calls) == 3
    assert depth() == 0


def test_an_exception_leaves_nothing_behind(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(RuntimeError, match=r"size|shape"), attention(), attention():
        by_name(q, q[..., :3], q)
    assert depth() == 0
    with pytest.raises(ZeroDivisionError), attention():
        _ = 1 / 0
    assert depth() == 0
    calls.clear()
    by_name(q, q, q)
    assert F.scaled_dot_product_attention is by_name is DOT
    assert F.multi_head_attention_forward is LAYER
    assert calls == []


def test_other_modes_are_passed_on_to(calls: list[str]) -> None:
    seen = []

    class Seeing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    q = torch.randn(1, 2, 5, 4)
    with attention(), Seeing():
        by_name(q, q, q)
    assert DOT in seen
    with Seeing(), attention(), torch.device("cpu"):
        by_name(q, q, q)
        assert torch.randn(3).device.type == "cpu"
    assert len(calls) == 2


def test_a_scope_is_its_thread_s(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    entered, done = threading.Event(), threading.Event()
    inside: list[int] = []

    def redirected() -> None:
        with attention():
            by_name(q, q, q)
            inside.append(len(calls))
            entered.set()
            assert done.wait(60)
        inside.append(depth())

    thread = threading.Thread(target=redirected)
    thread.start()
    assert entered.wait(60)
    by_name(q, q, q)
    assert depth() == 0
    done.set()
    thread.join(60)
    assert inside == [1, 0]
    assert len(calls) == 1
    other: list[int] = []
    with attention():
        thread = threading.Thread(target=lambda: other.append(depth()))
        thread.start()
        thread.join(60)
    assert other == [0]


def test_many_threads_at_once() -> None:
    q = torch.randn(1, 2, 5, 4)
    q[..., 0, :] = 0
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[3] = False
    expected = scaled_dot_product_attention(q, q, q, mask)
    start, wrong = threading.Barrier(6), []

    def work(redirected: bool) -> None:
        start.wait(60)
        for _ in range(200):
            if redirected:
                with attention():
                    out = by_name(q, q, q, mask)
                    if not torch.equal(out, expected):
                        wrong.append("redirected")
            if depth():
                wrong.append("left behind")

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_tasks_that_take_turns_leave_nothing_behind(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)

    async def task(turns: int) -> None:
        for _ in range(turns):
            with attention():
                await asyncio.sleep(0)
                by_name(q, q, q)
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(task(3), task(5))

    asyncio.run(both())
    assert (len(calls), depth()) == (8, 0)


@pytest.mark.parametrize(
    ("how", "reentrant"),
    [("method", True), ("method", False), ("function", True), ("function", False), ("grad", False)],
)
def test_a_backward_in_the_scope_computes_again_in_it(how: str, reentrant: bool) -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        return by_name(x, x, x, dropout_p=0.5)

    q = torch.randn(1, 2, 5, 4, requires_grad=True)
    with attention():
        torch.manual_seed(1)
        out = checkpoint(attend, q, use_reentrant=reentrant).sum()
        if how == "method":
            out.backward()
        elif how == "function":
            torch.autograd.backward(out)
        else:
            (q.grad,) = torch.autograd.grad(out, q)
        assert depth() == 1
    torch.manual_seed(1)
    out = scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    assert torch.equal(q.grad, torch.autograd.grad(out.sum(), q)[0])


def test_autocast(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    with attention(), torch.autocast("cpu", torch.bfloat16):
        out = by_name(q, q, q)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(out, scaled_dot_product_attention(q, q, q))
    assert (out.dtype, len(calls)) == (torch.bfloat16, 1)


def test_a_call_costs_little_more_than_ours() -> None:
    q = torch.randn(1, 1, 4, 8)

    def seconds(call: Any, count: int = 300) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            call(q, q, q)
        return (time.perf_counter() - begin) / count

    direct, scoped, others = [], [], []
    with torch.no_grad():
        for _ in range(15):
            direct.append(seconds(scaled_dot_product_attention))
            with attention():
                scoped.append(seconds(by_name))
                others.append(seconds(lambda x, *_: x + x))
    # about 3 µs; the bound leaves room for machines that are slow and busy
    assert min(scoped) - min(direct) < 20e-6
    assert min(others) < 30e-6


def test_a_copy_of_the_scope_is_a_scope(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    with copy.deepcopy(attention()):
        by_name(q, q, q)
    assert len(calls) == 1
