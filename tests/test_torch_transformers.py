"""Hugging Face's models with our attention function, against the same models with theirs."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import multihead.torch.hugging_face as ours
from multihead.torch import register_transformers, support
from tolerance import CANCELLED, TORCH, assert_close, tolerance

OUTPUT = {torch.float32: tolerance(TORCH, "float32"), torch.float64: tolerance(TORCH, "float64")}
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-10}
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register, from a state of PyTorch's generator that the test's name gives."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    before = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    register_transformers()
    yield
    for kind, mapping in zip((AttentionInterface, AttentionMaskInterface), before, strict=True):
        kind._global_mapping.clear()
        kind._global_mapping.update(mapping)


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


def lively(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Parameters so large that attention is felt in the outputs; no dropout."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.3)
    return model.to(dtype).eval()


def bert(**options: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=37,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=31,
        max_position_embeddings=29,
        **options,
    )
    return transformers.BertModel(config)


def llama(kv_heads: int = 2, **options: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=41,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        intermediate_size=29,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


def padded(where: str, n: int = 3, length: int = 11) -> torch.Tensor | None:
    """A padding mask, 1 = a token; the first sequence is whole, the others are shorter."""
    if where == "none":
        return None
    missing = torch.tensor([0, 4, 9])[:n, None]
    steps = torch.arange(length)
    tokens = steps >= missing if where == "left" else steps < length - missing
    return tokens.long()


def words(n: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(3, 37, (n, length))


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


def test_dropout_drops_its_share_of_the_weights() -> None:
    n, heads, length = 2, 6, 40
    query, key = torch.zeros(2, n, heads, length, 5)
    value = torch.eye(length).expand(n, heads, length, length)
    out, _ = attend(torch.nn.Module(), query, key, value, None, dropout=0.25, is_causal=False)
    dropped = float((out == 0).double().mean())
    assert 0.22 < dropped < 0.28
    assert torch.allclose(out[out != 0], torch.tensor(1 / length / 0.75))


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


def attend(*args: Any, **options: Any) -> tuple[torch.Tensor, None]:
    out: tuple[torch.Tensor, None] = AttentionInterface._global_mapping["multihead"](
        *args, **options
    )
    return out


class Layer(torch.nn.Module):
    """What transformers' function asks of a module."""

    def __init__(self, groups: int, causal: bool | None) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        if causal is not None:
            self.is_causal = causal


LENGTHS = [(1, 1), (1, 9), (7, 7), (5, 9), (9, 5)]
KINDS = ["none", "bool", "bool per head", "float", "float per head"]


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_function_is_transformers_own(kind: str, lengths: tuple[int, int], groups: int) -> None:
    n, heads, d, dv = 2, 6, 5, 7
    length, s = lengths
    options = itertools.product((None, True, False), (None, True, False), (None, 0.3), (0, 1, 2))
    for of_module, of_call, scale, of_bias in options:
        module = Layer(groups, of_module)
        # tokens before heads in memory, as projections leave them; or not
        query = torch.randn(n, length, heads, d, dtype=torch.float64).transpose(1, 2)
        if scale is None:
            query = query.contiguous()
        key = torch.randn(n, s, heads // groups, d, dtype=torch.float64).transpose(1, 2)
        value = torch.randn(n, s, heads // groups, dv, dtype=torch.float64).transpose(1, 2)
        mask = bias = None
        if kind != "none":
            mask = torch.rand(n, heads if "head" in kind else 1, length, s) < 0.7
            mask[..., 0] = True
            if "float" in kind:
                mask = torch.randn(mask.shape).double().masked_fill(~mask, -torch.inf)
        if of_bias:
            bias = torch.randn(of_bias, heads, length, s, dtype=torch.float64)
        d_out = torch.randn(n, length, heads, dv, dtype=torch.float64)
        results = []
        for function in (attend, sdpa_attention_forward):
            leaves = [
                None if x is None else x.detach().clone().requires_grad_(x.is_floating_point())
                for x in (query, key, value, mask, bias)
            ]
            out, weights = function(
                module,
                *leaves[:4],
                scaling=scale,
                is_causal=of_call,
                position_bias=leaves[4],
                dropout=0.0,
            )
            assert weights is None
            assert out.is_contiguous()
            out.backward(d_out)
            gradients = [x.grad for x in leaves if x is not None and x.requires_grad]
            results.append([out.detach(), *gradients])
        case = f"{of_module} {of_call} {scale} {of_bias}"
        # with one key in sight the gradients of scores are nothing but rounding
        for i, (found, expected) in enumerate(zip(*results, strict=True)):
            assert_close(found.numpy(), expected.numpy(), 1e-12, f"{i}: {case}", scale=1.0)


def test_a_mask_may_be_longer_than_the_keys() -> None:
    query, key, value = torch.randn(3, 2, 6, 5, 4).unbind()
    mask = torch.rand(2, 1, 5, 9) < 0.7
    mask[..., 0] = True
    found = attend(Layer(1, True), query, key, value, mask)[0]
    assert torch.equal(found, attend(Layer(1, True), query, key, value, mask[..., :5])[0])


@pytest.mark.parametrize("shape", [(0, 6, 5, 4), (0, 6, 1, 4), (2, 6, 0, 4)])
def test_nothing_to_compute(shape: tuple[int, ...]) -> None:
    key = torch.randn(shape[0], 2, 9, 4)
    out, _ = attend(Layer(3, True), torch.randn(shape), key, key, None)
    assert out.shape == (shape[0], shape[2], 6, 4)


def test_queries_that_all_sequences_share() -> None:
    for length in (1, 5):
        query, module = torch.randn(1, 6, length, 4), Layer(3, False)
        key, value = torch.randn(2, 3, 2, 9, 4).unbind()
        mask = torch.rand(3, 6, length, 9) < 0.7
        mask[..., 0] = True
        found = attend(module, query, key, value, mask)[0]
        expected = sdpa_attention_forward(module, query.expand(3, -1, -1, -1), key, value, mask)[0]
        assert_close(found.numpy(), expected.numpy(), OUTPUT[torch.float32])


@pytest.mark.parametrize("option", ["head_mask", "indices", "block_indices"])
def test_what_is_not_computed_is_refused(option: str) -> None:
    x = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match=f"does not support {option}"):
        attend(Layer(1, True), x, x, x, None, **{option: torch.ones(2)})
    with pytest.raises(ValueError, match=f"does not support {option}"):  # nor passed over elsewhere
        attend(Layer(1, True), *[x.to("meta")] * 3, None, **{option: torch.ones(2)})
    found = attend(Layer(1, True), x, x, x, None, **{option: None}, use_cache=True)[0]
    assert torch.equal(found, attend(Layer(1, True), x, x, x, None)[0])


def test_what_no_mask_shows_is_refused_elsewhere() -> None:
    x = torch.randn(1, 2, 5, 4, device="meta")
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool, device="meta")
    ends = torch.tensor([0, 2, 5])
    for options in ({"cu_seq_lens_q": ends}, {"cu_seq_lens_k": ends}):
        with pytest.raises(ValueError, match="from the attention mask, and there is none"):
            attend(Layer(1, True), x, x, x, None, **options)
        attend(Layer(1, True), x, x, x, mask, **options)
    attend(Layer(1, True), x, x, x, None, cu_seq_lens_q=ends[[0, 2]])


@pytest.mark.parametrize("option", ["softcap", "s_aux", "sinks"])
def test_what_only_the_engine_computes_is_refused_elsewhere(option: str) -> None:
    x = torch.randn(1, 2, 5, 4, device="meta")
    with pytest.raises(ValueError, match=f"does not support {option}"):
        attend(Layer(1, True), x, x, x, None, **{option: torch.ones(2)})


@pytest.mark.parametrize("length", [9, 1])
def test_a_window_that_no_mask_shows(length: int) -> None:
    q, k, v = (torch.randn(2, 2, n, 4) for n in (length, 9, 9))
    steps = torch.arange(9) - torch.arange(9 - length, 9)[:, None]
    mask = (steps <= 0) & (steps > -4)
    found = attend(Layer(1, True), q, k, v, None, sliding_window=4)[0]
    expected = attend(Layer(1, True), q, k, v, mask[None, None])[0]
    assert_close(found.numpy(), expected.numpy(), OUTPUT[torch.float32])


def capped() -> Any:
    """Gemma 2: capped scores, grouped heads, and a window in every other layer."""
    config = transformers.Gemma2Config(
        vocab_size=37,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=31,
        sliding_window=4,
        attn_logit_softcapping=2.0,
        pad_token_id=0,
    )
    return transformers.Gemma2ForCausalLM(config)


def with_sinks() -> Any:
    """gpt-oss: a learned sink for each head, grouped heads and windows."""
    config = transformers.GptOssConfig(
        vocab_size=37,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        sliding_window=4,
        num_local_experts=2,
        num_experts_per_tok=1,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.GptOssForCausalLM(config)


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


SMALL: dict[str, dict[str, Any]] = {
    "LongT5": {"d_model": 24, "num_layers": 1, "num_heads": 3, "d_kv": 8},
    "SwitchTransformers": {"d_model": 24, "num_layers": 1, "num_heads": 3, "d_kv": 8},
    "XGLM": {"d_model": 24, "num_layers": 1, "attention_heads": 3, "ffn_dim": 31},
    "DebertaV2": {},
    "XLNet": {"d_model": 24, "n_layer": 1, "n_head": 3},
    "Funnel": {"d_model": 24, "n_head": 3, "block_sizes": [1]},
    "WavLM": {},
    "BlipVision": {},
    "Swinv2": {},
    "Falcon": {},
    "GPTNeo": {"num_layers": 1, "num_heads": 3, "attention_types": [[["global"], 1]]},
    "SamVision": {},
}


@pytest.mark.parametrize("kind", SMALL)
def test_models_that_would_not_call_it_say_so_when_it_is_set(kind: str) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    sizes = SMALL[kind] if "d_model" in SMALL[kind] else sizes | SMALL[kind]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    why = f'{kind}Config models (do not support "sdpa"|know "eager", "sdpa".* and not)'
    with pytest.raises(ValueError, match=why):
        getattr(transformers, f"{kind}Model")._from_config(config, attn_implementation="multihead")


def test_a_part_of_a_model_may_have_another() -> None:
    vision = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    vision |= {"output_channels": 16, "image_size": 32, "patch_size": 16, "mlp_dim": 31}
    prompts = {"hidden_size": 16, "image_size": 32, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 31, "num_attention_heads": 2, "iou_head_hidden_dim": 9}
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    model = transformers.SamModel(config).eval()
    before = model.vision_encoder.config._attn_implementation
    with pytest.raises(ValueError, match=r'SamVisionConfig models know .* "vision_config": "sdpa"'):
        model.set_attn_implementation("multihead")
    assert model.vision_encoder.config._attn_implementation == before
    model.set_attn_implementation({"": "multihead", "vision_config": "sdpa"})
    assert model.config._attn_implementation == "multihead"
    assert model.vision_encoder.config._attn_implementation == "sdpa"


def test_what_was_set_behind_transformers_back_is_refused_in_the_call() -> None:
    config = transformers.XGLMConfig(
        vocab_size=37, pad_token_id=0, d_model=24, num_layers=1, attention_heads=3, ffn_dim=31
    )
    model = transformers.AutoModel.from_config(config)
    model.config._attn_implementation_internal = "multihead"
    with pytest.raises(ValueError, match='XGLMConfig models do not support "sdpa"'):
        model(words(), attention_mask=padded("left"))


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


def test_weights_are_not_returned() -> None:
    model, ids = lively(bert()), words()
    model.set_attn_implementation("multihead")
    with pytest.warns(UserWarning, match='returns no weights .* use "eager"'):
        out = model(ids, output_attentions=True)
    assert all(x is None for x in out.attentions)
    assert torch.equal(out[0], model(ids)[0])


def test_other_devices_have_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("ours was called")

    given: list[Any] = []

    def theirs(*args: Any, **options: Any) -> Any:
        given.append((args, options))
        return sdpa_attention_forward(*args, **options)

    monkeypatch.setattr(ours, "scaled_dot_product_attention", never)
    AttentionInterface.register("sdpa", theirs)
    module = Layer(3, True)
    query = torch.randn(2, 6, 5, 4, device="meta")
    key, value = torch.randn(2, 2, 2, 9, 4, device="meta").unbind()
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool, device="meta")
    options = {"dropout": 0.3, "scaling": 0.5, "is_causal": False, "sliding_window": 4}
    out, weights = attend(module, query, key, value, mask, **options)
    assert out.device.type == "meta"
    assert out.shape == (2, 5, 6, 4)
    assert weights is None
    args, passed = given[0]
    assert args[:2] == (module, query)
    assert args[4] is mask
    assert passed == options | {"position_bias": None}


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


def test_registering_again_changes_nothing() -> None:
    kinds = (AttentionInterface, AttentionMaskInterface)
    before = [dict(kind._global_mapping) for kind in kinds]
    register_transformers()
    assert [dict(kind._global_mapping) for kind in kinds] == before
    assert all("multihead" in mapping for mapping in before)


def test_transformers_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys, multihead.torch as t\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['transformers'] = None\n"
        "try: t.register_transformers()\n"
        "except ImportError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install transformers" in run.stdout


def test_a_version_without_the_interface_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("transformers")
    old.__version__ = "4.40.0"  # type: ignore[attr-defined]
    for name in [x for x in sys.modules if x.split(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match=r"AttentionMaskInterface, which transformers 4\.40\.0"):
        register_transformers()
