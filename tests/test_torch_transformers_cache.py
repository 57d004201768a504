"""Decoding over Hugging Face's caches: the engine reads keys and values where they lie."""

from __future__ import annotations

import inspect
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from multihead import _native
from tolerance import TORCH, assert_close, tolerance
from transformers_models import Layer, attend, lively, llama, padded, registration, words


@pytest.fixture(autouse=True)
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register, from a state of PyTorch's generator that the test's name gives."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    with registration():
        yield


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The keys and values that each call of the engine is given."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            def call(*given: Any) -> Any:
                if name == "attention_forward":
                    found.append((given[1].key, given[1].value))
                return getattr(_native, name)(*given)

            return call

    monkeypatch.setattr("multihead.torch.sdpa._native", Spy())
    return found


def cache_parameter(model: Any) -> str:
    """The name under which this version's models take a cache."""
    takes = inspect.signature(model.forward).parameters
    return "cache" if "cache" in takes else "past_key_values"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", ["none", "left"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_engine_reads_the_cache_itself(
    kind: str, where: str, dtype: torch.dtype, read: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    model, ids, mask = lively(llama(2), dtype), words(), padded(where)
    mask = torch.ones_like(ids) if mask is None else mask
    model.set_attn_implementation("multihead")
    cache: Any = transformers.DynamicCache(config=model.config)
    if kind == "static":
        cache = transformers.StaticCache(config=model.config, max_cache_len=29)
    parameter = cache_parameter(model)
    with torch.no_grad():
        for step in (ids, *words(length=4).split(1, 1)):
            if step.shape[1] == 1:
                mask = torch.cat([mask, torch.ones_like(step)], 1)
            read.clear()
            model(step, attention_mask=mask, **{parameter: cache})
            assert len(read) == len(cache.layers) == 2
            for (key, value), layer in zip(read, cache.layers, strict=True):
                for given, kept in ((key, layer.keys), (value, layer.values)):
                    assert given.data_ptr() == kept.data_ptr()
                    assert given.stride() == kept.stride()
                    assert given.dtype == dtype
                    assert given.shape[1] == 2  # heads of keys, for three of queries each


@pytest.mark.parametrize("rule", ["none", "mask", "window", "cap and sinks"])
def test_nothing_of_the_cache_s_size_is_made(rule: str) -> None:
    query, key = torch.randn(2, 6, 1, 16), torch.randn(2, 2, 500, 16)
    mask = None
    if rule == "mask":
        mask = (torch.arange(500) < torch.tensor([[411], [93]]))[:, None, None]
    options: dict[str, Any] = {"sliding_window": 40} if rule == "window" else {}
    if rule == "cap and sinks":
        options = {"softcap": 3.0, "sinks": torch.randn(6)}
    with torch.no_grad(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        attend(Layer(3, True), query, key, key, mask, **options)
    made = {event.name: event.cpu_memory_usage for event in profile.function_events}
    assert made
    assert max(made.values()) < key.nbytes / 20, made


BEYOND = """
import ctypes, mmap
import torch
from transformers.modeling_utils import AttentionInterface
from multihead.torch import register_transformers

register_transformers()
attend = AttentionInterface._global_mapping["multihead"]
libc = ctypes.CDLL(None, use_errno=True)
page, pages = mmap.PAGESIZE, 8
width = page // 256  # 64 rows on each page


def cache():
    memory = mmap.mmap(-1, pages * page)
    whole = torch.frombuffer(memory, dtype=torch.float32).view(1, 1, 64 * pages, width)
    whole.normal_()
    return memory, whole


def protect(whole, first):
    where = ctypes.c_void_p(whole.data_ptr() + first * page)
    assert libc.mprotect(where, (pages - first) * page, 0) == 0


class Layer(torch.nn.Module):
    is_causal = True


for queries, length in ((1, 23), (1, 301), (23, 23), (93, 93), (5, 23), (63, 301)):
    query = torch.randn(1, 3, queries, width)
    held, caches = zip(*[cache() for _ in range(2)])
    short = [x[:, :, :length].clone() for x in caches]
    mask = short_mask = None  # a prompt in an empty cache: causality hides the rest
    if queries < length:
        last = torch.arange(length - queries, length)[:, None]
        mask = (torch.arange(64 * pages) <= last)[None, None]
        short_mask = mask[..., :length]
    expected = attend(Layer(), query, *short, short_mask)[0]
    for x in caches:
        protect(x, -(-length // 64))
    found = attend(Layer(), query, *caches, mask)[0]
    assert torch.allclose(found, expected, atol=1e-6)
    print("read")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="memory is protected by mprotect")
def test_rows_beyond_the_tile_of_the_last_key_are_not_read() -> None:
    command = [sys.executable, "-c", BEYOND]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == 6 * "read\n", (run.returncode, run.stderr)


def test_what_stands_beyond_the_length_has_no_effect() -> None:
    query = torch.randn(2, 6, 1, 16)
    caches = torch.randn(2, 2, 2, 50, 16)
    lengths = torch.tensor([[31], [5]])
    beyond = torch.arange(50) >= lengths
    mask = ~beyond[:, None, None]
    expected = attend(Layer(3, True), query, *caches, mask)[0]
    caches = caches.masked_fill(beyond[None, :, None, :, None], torch.nan)
    assert torch.equal(attend(Layer(3, True), query, *caches, mask)[0], expected)


@pytest.mark.parametrize("queries", [1, 5, 70])
def test_weights_over_a_static_cache_are_as_long_as_it(queries: int) -> None:
    query, (key, value) = torch.randn(2, 6, queries, 16), torch.randn(2, 2, 2, 150, 16)
    last = torch.arange(93 - queries, 93)[:, None]
    for mask in ((torch.arange(150) <= last)[None, None], None):
        out, weights = attend(Layer(3, True), query, key, value, mask, output_attentions=True)
        assert weights is not None
        assert weights.shape == (2, 6, queries, 150)
        assert torch.equal(out, attend(Layer(3, True), query, key, value, mask)[0])
        applied = weights @ value.repeat_interleave(3, 1)
        assert_close(applied.transpose(1, 2).numpy(), out.numpy(), tolerance(TORCH, "float32"))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_prompts_in_parts(kind: str) -> None:
    model, ids = lively(llama(2), torch.float32), words(length=17)
    model.set_attn_implementation("multihead")
    cache: Any = transformers.DynamicCache(config=model.config)
    if kind == "static":
        cache = transformers.StaticCache(config=model.config, max_cache_len=24)
    parameter = cache_parameter(model)
    with torch.no_grad():
        whole, seen, parts = model(ids).logits, 0, []
        for part in ids.split([7, 6, 1, 3], 1):
            seen += part.shape[1]
            mask = torch.ones(3, seen, dtype=torch.long)
            parts.append(model(part, attention_mask=mask, **{parameter: cache}).logits)
    found = torch.cat(parts, 1)
    assert_close(found.numpy(), whole.numpy(), tolerance(TORCH, "float32"))
