"""The torch layer over cached keys and values: the NumPy layer's steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import multihead as mh
from layer_options import ALL
from multihead.torch import MultiheadAttention
from tolerance import assert_close


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
def test_steps_are_the_whole(options: dict[str, Any], batch_first: bool) -> None:
    module = MultiheadAttention(20, 4, batch_first=batch_first, dtype=torch.float64, **options)
    module.eval()
    x = torch.randn(2, 300, 20, dtype=torch.float64)
    cache = module.new_kv_cache(2, 120 if options else 300)

    def call(y: torch.Tensor, **more: Any) -> torch.Tensor:
        y = y if batch_first else y.transpose(0, 1)
        out, _ = module(y, y, y, is_causal=True, need_weights=False, **more)
        return out if batch_first else out.transpose(0, 1)

    with torch.inference_mode():
        whole = call(x)
        bounds = [0, *range(60, 300, 60), *range(295, 301)]
        parts = [call(x[:, a:b], kv_cache=cache) for a, b in itertools.pairwise(bounds)]
    assert_close(torch.cat(parts, 1), whole, 1e-12)
    cache.reset()
    with torch.inference_mode():  # in parts where there is a window
        assert_close(call(x, kv_cache=cache), whole, 1e-12)


def test_masks_weights_and_a_custom_projection() -> None:
    module = MultiheadAttention(12, 3, batch_first=True).eval()
    module.out_proj.register_forward_hook(lambda m, args, out: 2 * out)
    x, mask = torch.randn(2, 9, 12), torch.rand(9, 9) < 0.2
    cache = module.new_kv_cache(2, 9)
    with torch.no_grad():
        whole, expected = module(x, x, x, attn_mask=mask, is_causal=True)
        module(*[x[:, :7]] * 3, is_causal=True, kv_cache=cache)
        out, weights = module(*[x[:, 7:]] * 3, attn_mask=mask[7:], is_causal=True, kv_cache=cache)
        for n in range(2):  # unbatched, one by one
            alone = module.new_kv_cache(1, 9)
            for i in range(9):
                one, _ = module(
                    *[x[n, i : i + 1]] * 3, kv_cache=alone, attn_mask=mask[i : i + 1, : i + 1]
                )
            torch.testing.assert_close(one[0], whole[n, 8])
    torch.testing.assert_close(out, whole[:, 7:])
    torch.testing.assert_close(weights, expected[:, 7:])


@pytest.mark.parametrize("store", ["bfloat16", torch.float16, None])
def test_half_rows(store: Any) -> None:
    module = MultiheadAttention(16, 4, num_kv_heads=2, batch_first=True, rope=mh.Rope()).eval()
    x, cache = torch.randn(1, 280, 16), module.new_kv_cache(1, 280, store)
    with torch.no_grad():
        whole, _ = module(x, x, x, is_causal=True)
        module(*[x[:, :279]] * 3, is_causal=True, kv_cache=cache, need_weights=False)
        out, _ = module(*[x[:, 279:]] * 3, is_causal=True, kv_cache=cache, need_weights=False)
    assert_close(out, whole[:, 279:], 1e-5 if store is None else 2e-2)


def test_a_bfloat16_module() -> None:
    module = MultiheadAttention(16, 4, batch_first=True, dtype=torch.bfloat16).eval()
    x, cache = torch.randn(1, 30, 16, dtype=torch.bfloat16), module.new_kv_cache(1, 30)
    assert cache.dtype == "bfloat16"
    with torch.no_grad():
        whole, _ = module(x, x, x, is_causal=True)
        outs = [
            module(*[x[:, i : i + 1]] * 3, is_causal=True, kv_cache=cache)[0] for i in range(30)
        ]
    assert_close(torch.cat(outs, 1).float(), whole.float(), 2e-2)


def test_a_cache_serves_both_faces() -> None:
    module = MultiheadAttention(12, 3, batch_first=True).eval()
    layer = mh.MultiheadAttention(12, 3, batch_first=True).eval()
    layer.load_state_dict(module.state_dict())
    x, cache = torch.randn(1, 6, 12), module.new_kv_cache(1, 6)
    with torch.no_grad():
        whole, _ = module(x, x, x, is_causal=True)
        module(*[x[:, :5]] * 3, is_causal=True, kv_cache=cache)
    last = x[:, 5:].numpy()
    out, _ = layer(last, last, last, is_causal=True, kv_cache=cache)
    assert_close(out, np.asarray(whole)[:, 5:], 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x, c: m.train()(x, x, x, kv_cache=c), "None in training mode"),
        (lambda m, x, c: m(x, x[:, :2], x[:, :2], kv_cache=c), "as many new tokens"),
        (lambda m, x, c: m(x[:1], x[:1], x[:1], kv_cache=c), "expected keys and values"),
        (lambda m, x, c: m(x, x, x, kv_cache=7), "kv_cache: expected a KVCache"),
        (lambda m, x, c: m(x, x, x, torch.zeros(2, 3) > 0, kv_cache=c), "None beside a cache"),
        (lambda m, x, c: m(x, x, x, attn_mask=torch.zeros(3, 9), kv_cache=c), "attn_mask"),
        (lambda m, x, c: m(x.to("meta"), x, x, kv_cache=c), "query: expected CPU tensors"),
    ],
)
def test_what_makes_no_sense_is_refused(change: Any, message: str) -> None:
    module = MultiheadAttention(8, 2, batch_first=True).eval()
    cache, x = module.new_kv_cache(2, 9), torch.randn(2, 3, 8)
    with torch.no_grad(), pytest.raises((ValueError, TypeError), match=message):
        change(module, x, cache)
    assert cache.lengths.tolist() == [0, 0]
    module.eval()
    with pytest.raises(ValueError, match=r"kv_cache: expected torch.no_grad\(\)"):
        module(x, x, x, kv_cache=cache)
