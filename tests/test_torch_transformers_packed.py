"""Packed sequences in Hugging Face's models: each has what it has by itself."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DataCollatorWithFlattening

from multihead.torch.hugging_face import attend
from transformers_models import Layer, capped, lively, llama, mistral, registration, with_sinks

LENGTHS = (5, 11, 1, 7)
COLLATORS: dict[str, dict[str, Any]] = {
    "all": {"return_flash_attn_kwargs": True},
    "boundaries": {"return_flash_attn_kwargs": True, "return_position_ids": False},
    "positions": {},
}


@pytest.fixture(autouse=True)
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register, from a state of PyTorch's generator that the test's name gives."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    with registration():
        yield


def losses(model: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")


@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "cache"])
@pytest.mark.parametrize("collator", COLLATORS)
@pytest.mark.parametrize("make", [llama, mistral, capped, with_sinks])
def test_results_and_gradients_are_those_of_each_sequence(
    make: Any, collator: str, cached: bool
) -> None:
    # experts are not of float64, and Gemma's norms are computed in float32
    dtype = torch.float32 if make is with_sinks else torch.float64
    model = lively(make(), dtype).train()
    model.config.use_cache = cached
    model.set_attn_implementation("multihead")
    ids = [torch.randint(3, 37, (n,)) for n in LENGTHS]
    batch = DataCollatorWithFlattening(**COLLATORS[collator])([{"input_ids": x} for x in ids])
    del batch["labels"]
    # positions that do not restart turn by a larger angle: the same but for its rounding
    exact = collator != "boundaries" and make in (llama, mistral)
    bound = 1e-9 if exact else 1e-4
    close = {"rtol": bound, "atol": bound}
    found = model(**batch).logits[0].split(LENGTHS)
    sum(losses(model, x, y) for x, y in zip(found, ids, strict=True)).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for x, y in zip(found, ids, strict=True):
        expected = model(y[None]).logits[0]
        torch.testing.assert_close(x, expected, **close)
        losses(model, expected, y).backward()
    assert len(grads) > 10
    for name, p in model.named_parameters():
        if p.grad is not None:
            largest = max(1.0, float(p.grad.abs().max()))
            assert float((grads[name] - p.grad).abs().max()) <= bound * largest, name


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_boundaries_where_no_mask_is(causal: bool, window: int | None) -> None:
    q, k, v = (torch.randn(1, heads, 24, 8) for heads in (6, 2, 2))
    ends = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    module, options = Layer(3, causal), {"sliding_window": window, "softcap": 2.0}
    for given in (
        {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends},
        {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends.clone(), "max_length_q": 11},
        {"cu_seq_lens_q": ends},
        {"cu_seq_lens_k": ends},
    ):
        out, weights = attend(module, q, k, v, None, **given, **options)
        assert weights is None
        assert out.shape == (1, 24, 6, 8)
        parts = zip(*(x.split(LENGTHS, 2) for x in (q, k, v)), out.split(LENGTHS, 1), strict=True)
        for a, b, c, found in parts:
            steps = torch.arange(a.shape[2]) - torch.arange(a.shape[2])[:, None]
            seen = steps < (window or 99)
            seen = (steps <= 0 if causal else seen) & (steps > -(window or 99))
            expected, _ = attend(module, a, b, c, seen[None, None], softcap=2.0)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["bool", "float", "one row"])
def test_boundaries_count_beside_a_mask(kind: str) -> None:
    q, k, v = (torch.randn(2, 2, 12, 4) for _ in range(3))
    ends = torch.tensor([0, 5, 12, 15, 24], dtype=torch.int32)  # through both rows of the batch
    mask = torch.rand(2, 1, 1 if kind == "one row" else 12, 12) < 0.6
    given = torch.where(mask, torch.randn(12), -torch.inf) if kind == "float" else mask
    out, _ = attend(Layer(1, True), q, k, v, given, cu_seq_lens_q=ends, cu_seq_lens_k=ends)
    for n, start, end in ((0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 12)):
        rows = slice(None) if kind == "one row" else slice(start, end)
        part = (x[n : n + 1, :, start:end] for x in (q, k, v))
        cut = given[n : n + 1, :, rows, start:end]
        expected, _ = attend(Layer(1, True), *part, cut)
        torch.testing.assert_close(out[n : n + 1, start:end], expected)


def test_positions_that_restart() -> None:
    x = torch.randn(1, 2, 7, 4)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1]])
    found, _ = attend(Layer(1, True), x, x, x, None, position_ids=positions)
    ends = torch.tensor([0, 3, 5, 7])
    expected, _ = attend(Layer(1, True), x, x, x, None, cu_seq_lens_q=ends)
    assert torch.equal(found, expected)
    plain, _ = attend(Layer(1, True), x, x, x, None)
    for other in (torch.arange(7)[None], torch.arange(7)[None] + 5, None, positions[:, :3]):
        assert torch.equal(attend(Layer(1, True), x, x, x, None, position_ids=other)[0], plain)
    whole, _ = attend(Layer(1, False), x, x, x, None)  # transformers packs causal models alone
    assert torch.equal(attend(Layer(1, False), x, x, x, None, position_ids=positions)[0], whole)


def test_autocast() -> None:
    model = lively(llama(), torch.float32)
    model.set_attn_implementation("multihead")
    ids = [torch.randint(3, 37, (n,)) for n in LENGTHS]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    batch = collate([{"input_ids": x} for x in ids])
    del batch["labels"]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch).logits[0].split(LENGTHS)
        for x, y in zip(found, ids, strict=True):
            torch.testing.assert_close(x, model(y[None]).logits[0], rtol=0.05, atol=0.1)


@pytest.mark.timeout(120)
def test_compiled() -> None:
    torch.compiler.reset()
    model = lively(llama())
    model.set_attn_implementation("multihead")
    ids = [torch.randint(3, 37, (n,)) for n in LENGTHS]
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(
        [{"input_ids": x} for x in ids]
    )
    del batch["labels"]
    expected = model(**batch, use_cache=False).logits
    found = torch.compile(model, backend="aot_eager")(**batch, use_cache=False).logits
    torch.testing.assert_close(found, expected)


def test_a_bias_of_positions_is_refused() -> None:
    x, ends = torch.randn(1, 2, 5, 4), torch.tensor([0, 2, 5])
    with pytest.raises(ValueError, match="knows no position_bias of packed sequences"):
        attend(
            Layer(1, True), x, x, x, None, position_bias=torch.zeros(1, 2, 5, 5), cu_seq_lens_q=ends
        )
