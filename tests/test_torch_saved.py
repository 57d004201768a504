"""What the torch faces keep between forward and backward: what hooks see, how much, how long."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from multihead.torch import MultiheadAttention, scaled_dot_product_attention
from torch_pairs import close, pair

pytorch_s = torch.nn.functional.scaled_dot_product_attention


def test_what_is_kept_for_backward_is_saved_as_pytorch_saves() -> None:
    ours = MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 50, 16, requires_grad=True)
    saved: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel())
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out, _ = ours(x, x, x, need_weights=False)
    assert max(saved) >= 4 * x.numel()  # query, key, value and what was attended to
    found = torch.autograd.grad(out.sum(), x, retain_graph=True)[0]
    plain = torch.autograd.grad(ours(x, x, x, need_weights=False)[0].sum(), x)[0]
    assert torch.equal(found, plain)


@pytest.mark.parametrize("kind", ["layer", "attention"])
def test_hooks_may_change_what_saved_tensors_are(kind: str) -> None:
    theirs, ours = pair(8, 2)
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    calls: Any = [lambda x, m=m: m(x[0], x[0], x[0])[0] for m in (ours, theirs)]
    if kind == "attention":
        calls = [lambda x, f=f: f(x, x, x) for f in (scaled_dot_product_attention, pytorch_s)]

    def gradient(call: Any, unpack: Any) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
            out = call(x)
        return torch.autograd.grad(out.square().sum(), x)[0]

    turned = gradient(calls[0], lambda x: torch._neg_view(-x) if x.is_floating_point() else x)
    close(turned, gradient(calls[1], lambda x: x))
    apart = gradient(calls[0], lambda x: torch.stack([x, x], -1)[..., 0])
    close(apart, gradient(calls[1], lambda x: x))
    with pytest.raises(RuntimeError, match="shapes"):
        gradient(calls[0], lambda x: x[:1])
    count = iter(range(100))
    with pytest.raises(RuntimeError, match="dtype"):
        gradient(calls[0], lambda x: x.float() if next(count) == 1 else x)


def test_backward_frees_what_forward_kept() -> None:
    ours = MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 50, 16, requires_grad=True)
    kept: list[Any] = []
    for through in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(weakref.ref(x)) or x, lambda x: x
        ):
            call = lambda x: ours(x, x, x, need_weights=False)[0]  # noqa: E731
            out = checkpoint(call, x, use_reentrant=False) if through else call(x)
        loss = out.sum()
        loss.backward()
        gc.collect()
        alive = [r() for r in kept if r() is not None and r() is not x]
        assert all(any(a is p for p in ours.parameters()) for a in alive)
        with pytest.raises(RuntimeError):
            loss.backward()


KEPT_LOSSES = """
import resource
import torch
from multihead.torch import MultiheadAttention


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


ours = MultiheadAttention(256, 4, batch_first=True)
x = torch.randn(4, 512, 256)
losses, before = [], 0
for i in range(25):
    losses.append(ours(x, x, x, need_weights=False)[0].sum())
    losses[-1].backward()
    if i == 4:
        before = resident()
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_loss_that_is_kept_keeps_no_more() -> None:
    command = [sys.executable, "-c", KEPT_LOSSES]  # alone: what others free may come back
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(run.stdout) < 20 * 2e6  # query, key, value and output are 8.4 MB a step


def test_boolean_masks_may_be_changed_before_backward() -> None:
    theirs, ours = pair(8, 2)
    x = torch.randn(5, 2, 8, dtype=torch.float64, requires_grad=True)
    grads = []
    for module in (ours, theirs):
        padding, mask = torch.zeros(2, 5, dtype=torch.bool), torch.zeros(5, 5, dtype=torch.bool)
        out, _ = module(x, x, x, key_padding_mask=padding, attn_mask=mask)
        padding[:, -1] = True
        mask[:, 0] = True
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    close(*grads)
    q = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(5, 5, dtype=torch.bool)
    out = scaled_dot_product_attention(q, q, q, mask)
    mask[:, 0] = False
    expected = torch.autograd.grad(pytorch_s(q, q, q).sum(), q)[0]
    close(torch.autograd.grad(out.sum(), q)[0], expected)


def test_what_a_mask_broadcasts_is_not_copied() -> None:
    q = torch.randn(2, 3, 50, 8, requires_grad=True)
    mask = torch.ones(2, 1, 1, 50, dtype=torch.bool).expand(2, 3, 50, 50)
    sizes: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bool:
            sizes.append(x.untyped_storage().nbytes())
        return x

    ours = MultiheadAttention(24, 3, batch_first=True)
    x = torch.randn(2, 50, 24)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        scaled_dot_product_attention(q, q, q, mask).sum().backward()
        ours(x, x, x, attn_mask=~mask[:1, :1, :1].expand(2, 3, 50, 50))[0].sum().backward()
    assert sizes[0] == 2 * 50
    assert len(sizes) == 2
