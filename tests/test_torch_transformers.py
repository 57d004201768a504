"""Hugging Face's models with our attention function, against the same models with theirs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import multihead.torch.hugging_face as ours
from multihead.torch import support
from tolerance import CANCELLED, TORCH, assert_close, tolerance
from transformers_models import bert, capped, lively, llama, padded, registration, with_sinks, words

OUTPUT = {torch.float32: tolerance(TORCH, "float32"), torch.float64: tolerance(TORCH, "float64")}

GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-10}

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register, from a state of PyTorch's generator that the test's name gives."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    with registration():
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reaches our function; PyTorch's is not to be called at all."""
    found: list[dict[str, Any]] = []
    inner = ours.scaled_dot_product_attention

    def counted(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> torch.Tensor:
        names = ("attn_mask", "dropout_p", "is_causal")
        shapes = {"query": query.shape, "key": key.shape}
        found.append(shapes | dict(zip(names, rest, strict=False)) | options)
        return inner(query, key, value, *rest, **options)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("PyTorch's function was called")

    monkeypatch.setattr(ours, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", never)
    return found


def step(model: Any, name: str, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Outputs and all gradients of one call with one attention function."""
    model.set_attn_implementation(name)
    assert model.config._attn_implementation == name
    model.zero_grad()
    outputs = model(**inputs)
    found = {
        f"out {field}": outputs[field]
        for field in ("last_hidden_state", "pooler_output", "logits")
        if field in outputs
    }
    generator = torch.Generator().manual_seed(5)
    loss = torch.zeros(())
    for x in found.values():
        loss = loss + (x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum()
    loss.backward()
    found |= {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {n: x.detach() for n, x in found.items()}


def agree(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Assert that all outputs and gradients are those of "sdpa"; return them."""
    found, expected = step(model, "multihead", inputs), step(model, "sdpa", inputs)
    assert found.keys() == expected.keys()
    dtype = next(model.parameters()).dtype
    gradients = [x for name, x in expected.items() if not name.startswith("out ")]
    largest = max(float(x.abs().max()) for x in gradients)
    assert len(gradients) > 10
    for name, x in expected.items():
        bound = (OUTPUT if name.startswith("out ") else GRADIENT)[dtype]
        # one number added to all of a query's scores has no effect: nothing but rounding is left
        scale = CANCELLED * largest if "key.bias" in name or "k_proj.bias" in name else 0.0
        assert found[name].dtype == x.dtype
        assert_close(found[name].numpy(), x.numpy(), bound, name, scale=scale)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["none", "left", "right"])
def test_an_encoder_with_a_padded_batch(where: str, dtype: torch.dtype) -> None:
    model, ids, mask = lively(bert(), dtype), words(), padded(where)
    found = agree(model, {"input_ids": ids, "attention_mask": mask})
    if where == "right":  # padding is as if it were not there
        model.set_attn_implementation("multihead")
        alone = model(ids[1:2, :7])["last_hidden_state"].detach()
        beside = found["out last_hidden_state"][1:2, :7]
        assert_close(beside.numpy(), alone.numpy(), OUTPUT[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vision_transformer(dtype: torch.dtype) -> None:
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=31,
        image_size=15,
        patch_size=5,
    )
    model = lively(transformers.ViTModel(config), dtype)
    agree(model, {"pixel_values": torch.randn(3, 3, 15, 15, dtype=dtype)})


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("where", ["none", "left", "right"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decoder_with_a_padded_batch(dtype: torch.dtype, where: str, kv_heads: int) -> None:
    model, ids, mask = lively(llama(kv_heads), dtype), words(), padded(where)
    found = agree(model, {"input_ids": ids, "attention_mask": mask})["out logits"]
    model.set_attn_implementation("multihead")
    ids[:, 8:] = 3  # what comes later is not seen
    again = model(ids, attention_mask=mask).logits.detach()
    assert_close(again[:, :8].numpy(), found[:, :8].numpy(), OUTPUT[dtype])
    assert not torch.allclose(again[:, 8:], found[:, 8:])


def test_layers_with_a_sliding_window() -> None:
    config = transformers.MistralConfig(**llama().config.to_diff_dict(), sliding_window=4)
    model, ids = lively(transformers.MistralForCausalLM(config)), words()
    for where in ("none", "left", "right"):
        found = agree(model, {"input_ids": ids, "attention_mask": padded(where)})["out logits"]
    model.set_attn_implementation("multihead")
    ids[:, :3] = 3  # nor is what two layers of windows leave behind
    assert torch.equal(model(ids, attention_mask=padded("right")).logits[0, 9:], found[0, 9:])


def test_biases_and_cross_attention() -> None:
    config = transformers.T5Config(
        vocab_size=37,
        d_model=24,
        d_kv=7,
        d_ff=31,
        num_layers=2,
        num_heads=3,
        decoder_start_token_id=0,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=9,
    )
    model = lively(transformers.T5ForConditionalGeneration(config))
    inputs = {
        "input_ids": words(),
        "attention_mask": padded("right"),
        "decoder_input_ids": words(length=7),
    }
    found = agree(model, inputs)
    assert sum("relative_attention_bias" in name for name in found) == 2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("where", ["none", "left"])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_generation_with_a_cache(
    kv_heads: int, where: str, cache: str, request: pytest.FixtureRequest
) -> None:
    model, ids, mask = lively(llama(kv_heads)), words(), padded(where)
    found = {}
    for name in ("sdpa", "multihead"):
        if name == "multihead":
            calls = request.getfixturevalue("calls")
        model.set_attn_implementation(name)
        found[name] = model.generate(
            ids,
            attention_mask=torch.ones_like(ids) if mask is None else mask,
            max_new_tokens=6,
            do_sample=False,
            cache_implementation=cache,
            disable_compile=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
    assert found["sdpa"].sequences.shape == (3, 17)
    assert torch.equal(found["multihead"].sequences, found["sdpa"].sequences)
    for x, expected in zip(found["multihead"].logits, found["sdpa"].logits, strict=True):
        assert_close(x.numpy(), expected.numpy(), OUTPUT[torch.float32])
    assert len(calls) == 2 * 6
    for call in calls[2:]:  # one query for each head
        assert call["query"] == (3, 6, 1, 6)
        assert not call["is_causal"]
        assert call["enable_gqa"] == (kv_heads < 6)


@pytest.mark.parametrize("make", [bert, llama])
def test_ours_is_what_computes(make: Callable[[], Any], calls: list[dict[str, Any]]) -> None:
    model = lively(make())
    for mask in (None, padded("right")):
        calls.clear()
        model.set_attn_implementation("multihead")
        out = model(words(), attention_mask=mask)
        out[0].sum().backward()
        assert len(calls) == model.config.num_hidden_layers
        for call in calls:
            assert (call["attn_mask"] is None) == (mask is None)
            assert call["is_causal"] == (mask is None and make is llama)
        model.set_attn_implementation("eager")
        model(words(), attention_mask=mask)
        assert len(calls) == model.config.num_hidden_layers


def test_it_can_be_asked_for_from_the_beginning(
    calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = bert().config
    model = transformers.AutoModel.from_config(config, attn_implementation="multihead").eval()
    ids = words()
    out = model(ids)[0]
    assert len(calls) == 2
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="multihead")
    assert torch.equal(again(ids)[0], out)
    assert len(calls) == 4


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [bert, llama])
def test_dropout_follows_pytorch_s_generator(
    make: Callable[..., Any], calls: list[dict[str, Any]]
) -> None:
    options = {"attention_dropout": 0.4}
    if make is bert:
        options = {"attention_probs_dropout_prob": 0.4, "hidden_dropout_prob": 0.0}
    model = lively(make(**options))
    ids, mask = words(), padded("right")
    model.set_attn_implementation("multihead")

    def run(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        model.zero_grad()
        out = model(ids, attention_mask=mask)[0]
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    plain = run(1)
    assert {call["dropout_p"] for call in calls} == {0.0}
    calls.clear()
    model.train()
    first, again, other = run(1), run(1), run(2)
    assert {call["dropout_p"] for call in calls} == {0.4}
    for x, y in zip(first, again, strict=True):
        assert torch.equal(x, y)
        assert torch.isfinite(x).all()
    assert not torch.allclose(first[0], other[0])
    assert not torch.allclose(first[0], plain[0])
    model.gradient_checkpointing_enable()  # computes each layer once more, with the same dropout
    calls.clear()
    for x, y in zip(run(1), first, strict=True):
        assert_close(x.numpy(), y.numpy(), GRADIENT[torch.float64])
    assert len(calls) == 4


@pytest.mark.parametrize("make", [bert, llama])
def test_sequences_of_nothing_but_padding(make: Callable[[], Any]) -> None:
    model, ids, mask = lively(make()), words(), padded("left")
    assert mask is not None
    mask[2] = 0
    found = step(model, "multihead", {"input_ids": ids, "attention_mask": mask})
    for name, x in found.items():
        assert torch.isfinite(x).all(), name
    field = "logits" if make is llama else "last_hidden_state"
    alone = model(ids[:2], attention_mask=mask[:2])[field].detach()
    assert_close(found[f"out {field}"][:2].numpy(), alone.numpy(), OUTPUT[torch.float64])


@pytest.mark.parametrize("make", [capped, with_sinks])
@pytest.mark.parametrize("where", ["none", "left", "right"])
def test_models_that_caps_or_sinks_keep_from_sdpa(where: str, make: Callable[[], Any]) -> None:
    model, ids, mask = lively(make(), torch.float32), words(), padded(where)
    tokens = torch.ones_like(ids) if mask is None else mask  # others attend to what no one reads
    weights, steps = torch.randn(3, ids.shape[1], 37) * tokens[..., None], []
    for name in ("eager", "multihead"):
        model.set_attn_implementation(name)
        logits = model(ids, attention_mask=mask).logits
        names, parameters = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad((logits * weights).sum(), parameters, allow_unused=True)
        steps.append((logits * tokens[..., None], *grads))
    assert any("sinks" in name for name in names) == (make is with_sinks)
    for name, expected, found in zip(("logits", *names), *steps, strict=True):
        if expected is not None:
            bound = 1e-5 if name == "logits" else 1e-4
            assert_close(found.detach().numpy(), expected.detach().numpy(), bound, name)


@pytest.mark.parametrize("make", [capped, with_sinks])
def test_generation_with_caps_or_sinks(make: Callable[[], Any]) -> None:
    model, ids, mask = lively(make(), torch.float32), words(), padded("left")
    written = []
    for name in ("eager", "multihead"):
        model.set_attn_implementation(name)
        written.append(model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False))
    assert torch.equal(*written)


def test_queries_that_a_model_leaves_out() -> None:
    config = transformers.Gemma4TextConfig(
        vocab_size=41,
        vocab_size_per_layer_input=41,
        hidden_size=24,
        hidden_size_per_layer_input=5,
        intermediate_size=31,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_kv_shared_layers=2,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model, ids = lively(transformers.Gemma4ForCausalLM(config), torch.float32), words()
    found = {}
    for name in ("sdpa", "multihead"):
        model.set_attn_implementation(name)
        found[name] = model(ids, logits_to_keep=3).logits.detach().numpy()
    assert found["sdpa"].shape == (3, 3, 41)
    assert_close(found["multihead"], found["sdpa"], 1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_it_is_compiled_without_breaks() -> None:
    torch._dynamo.reset()
    support.refusal.cache_clear()
    model, ids, mask = lively(llama()), words(), padded("left")
    model.set_attn_implementation("multihead")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    other = lively(bert())
    other.set_attn_implementation("multihead")
    inputs = {"attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        found = compiled(ids, **inputs).logits
        assert_close(found.numpy(), model(ids, **inputs).logits.numpy(), OUTPUT[torch.float64])
        other(ids, attention_mask=mask)  # another model is not a reason to compile again
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(ids, **inputs).logits, found)
    torch._dynamo.reset()
