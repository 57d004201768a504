"""Every family of `families.py`, tiny and random, in inference, training and generation."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import multihead.torch.hugging_face as ours
from families import BEAMS, BESIDES, FAMILIES, GENERATING, KINDS, REFUSED, SIZES, UNSUNK
from multihead.torch import support
from tolerance import CANCELLED, TORCH, assert_close, tolerance
from transformers_models import registration

OUTPUT, GRADIENT = tolerance(TORCH, "float32"), 1e-4
KEY_BIASES = ("key.bias", "k_proj.bias", "k_lin.bias", "Wk.bias", "linear_k.bias")
WRITING = [name for name, family in FAMILIES.items() if family.kind in GENERATING]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with registration():
        yield


@pytest.fixture
def calls(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches our functions; PyTorch's is not to be called at all."""
    found: list[str] = []

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("PyTorch's function was called")

    if name not in BESIDES:
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", never)
    for function in ("scaled_dot_product_attention", "attention_and_weights"):
        inner = getattr(ours, function)

        def counted(*given: Any, _inner: Any = inner, _name: str = function, **options: Any) -> Any:
            found.append(_name)
            return _inner(*given, **options)

        monkeypatch.setattr(ours, function, counted)
    return found


@functools.cache
def made(name: str) -> Any:
    """A model of a family whose attention is felt in its outputs."""
    family = FAMILIES[name]
    kind = transformers.CONFIG_MAPPING[name]
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    sizes = {kind.attribute_map.get(x, x): value for x, value in SIZES.items() if x in known}
    config = kind(**sizes | family.sizes)
    model = getattr(transformers, KINDS[family.kind]).from_config(
        config, attn_implementation="multihead"
    )
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for parameter, p in model.named_parameters():
            wide = p.dim() > 1
            mean = 0.0 if wide or "bias" in parameter or "lambda" in parameter else 1.0
            p.normal_(mean, (max(p[0].numel(), 1) if wide else 100) ** -0.5, generator=generator)
    if family.kind in GENERATING:
        model.generation_config.eos_token_id = None
    return model


def tokens_of(where: str, length: int = 11) -> torch.Tensor:
    """1 where there is a token; if there is padding, the first sequence has none."""
    missing, steps = torch.tensor([0, 4, 9])[:, None], torch.arange(length)
    if where == "none":
        return torch.ones(3, length, dtype=torch.long)
    return (steps >= missing if where == "left" else steps < length - missing).long()


def given(name: str, where: str) -> tuple[dict[str, Any], torch.Tensor | float]:
    """Inputs of a model, and 1 for each of its outputs that stands for a token."""
    family, model = FAMILIES[name], made(name)
    main = model.main_input_name
    if main == "input_ids":
        tokens = tokens_of(where)
        inputs = {main: torch.randint(3, 37, (3, 11)), "attention_mask": tokens}
        if family.kind == "encoder-decoder":
            return inputs | {"decoder_input_ids": torch.randint(3, 37, (3, 7))}, 1.0
        return inputs, tokens[..., None]
    if main == "pixel_values":
        frames = (2,) if hasattr(model.config, "num_frames") else ()
        return {main: torch.randn(2, *frames, 3, 15, 15)}, 1.0
    if main == "input_values":
        return {main: torch.randn(2, 180)}, 1.0
    features = (40, 8) if name == "speech_to_text" else (8, 40)
    inputs = {main: torch.randn(2, *features), "decoder_input_ids": torch.randint(3, 37, (2, 7))}
    return inputs, 1.0


def side(name: str) -> str:
    return "left" if FAMILIES[name].kind == "decoder" else "right"


def results(name: str, function: str, inputs: dict[str, Any], **options: Any) -> Any:
    model = made(name)
    model.set_attn_implementation(function)
    torch.manual_seed(7)  # of what is drawn beside attention
    return model(**inputs, **options)


def output(found: Any) -> torch.Tensor:
    out: torch.Tensor = found["logits"] if "logits" in found else found["last_hidden_state"]
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_inference(name: str, calls: list[str]) -> None:
    made(name).eval()
    for where in ("none", "left") if side(name) == "left" else ("none",):
        inputs, shown = given(name, where)
        with torch.no_grad():
            expected = output(results(name, "eager", inputs)) * shown
            assert not calls
            found = output(results(name, "multihead", inputs)) * shown
        assert calls
        calls.clear()
        assert_close(found.numpy(), expected.numpy(), OUTPUT, where)


@pytest.mark.parametrize("name", FAMILIES)
def test_inference_padded_right_and_its_weights(name: str, calls: list[str]) -> None:
    made(name).eval()
    inputs, shown = given(name, "right")
    with torch.no_grad():
        expected = results(name, "eager", inputs, output_attentions=True)
        plain = results(name, "multihead", inputs)
        assert set(calls) == {"scaled_dot_product_attention"}
        calls.clear()
        found = results(name, "multihead", inputs, output_attentions=True)
    assert set(calls) == {"attention_and_weights"}
    out = output(expected) * shown
    assert_close((output(plain) * shown).numpy(), out.numpy(), OUTPUT)
    assert torch.equal(output(found), output(plain))
    fields = [x for x in expected if x.endswith("attentions") and expected[x]]
    assert fields
    for field in fields:
        assert len(found[field]) == len(expected[field]) > 0
        for x, y in zip(found[field], expected[field], strict=True):
            if name in UNSUNK:
                x = x / x.sum(-1, keepdim=True).clamp_min(1e-9)
            rows = shown[:, None] if isinstance(shown, torch.Tensor) else 1.0
            assert_close((x * rows).numpy(), (y * rows).numpy(), OUTPUT, field)


@pytest.mark.parametrize("name", FAMILIES)
def test_training(name: str, calls: list[str]) -> None:
    model = made(name).train()
    inputs, shown = given(name, side(name))
    gradients = []
    for function in ("eager", "multihead"):
        model.zero_grad()
        out = output(results(name, function, inputs))
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
        (out * weights * shown).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    model.eval()
    assert calls
    expected, found = gradients
    assert expected.keys() == found.keys()
    largest = max(float(x.abs().max()) for x in expected.values() if x.numel())
    for parameter, x in expected.items():
        # one number added to all of a query's scores has no effect: nothing but rounding is left
        scale = CANCELLED * largest if parameter.endswith(KEY_BIASES) else 0.0
        assert_close(found[parameter].numpy(), x.numpy(), GRADIENT, parameter, scale=scale)


@pytest.mark.parametrize("name", WRITING)
def test_generation(name: str, calls: list[str]) -> None:
    model = made(name).eval()
    inputs, _ = given(name, side(name))
    inputs.pop("decoder_input_ids", None)
    ways: dict[str, dict[str, Any]] = {"dynamic": {}}
    ways["static"] = {"cache_implementation": "static", "disable_compile": True}
    if name in BEAMS:
        ways["beams"] = {"num_beams": 3}
    for way, options in ways.items():
        written = []
        for function in ("eager", "multihead"):
            model.set_attn_implementation(function)
            calls.clear()
            written.append(
                model.generate(
                    **inputs,
                    max_new_tokens=4,
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_logits=True,
                    **options,
                )
            )
            assert bool(calls) == (function == "multihead")
        expected, found = written
        assert torch.equal(found.sequences, expected.sequences), way
        for x, y in zip(found.logits, expected.logits, strict=True):
            assert_close(x.numpy(), y.numpy(), OUTPUT, way)


@pytest.mark.parametrize("name", [x for names in REFUSED.values() for x in names])
def test_what_is_not_served_says_so(name: str) -> None:
    why = next(x for x, names in REFUSED.items() if name in names)
    kind = transformers.CONFIG_MAPPING[name]
    importlib.import_module(kind.__module__.replace("configuration_", "modeling_"))
    first, *_ = why.split("`")[1].split(" ...")
    said = support.refusal(kind, "multihead")
    assert said is not None
    assert first in said
    assert 'use attn_implementation="' in said


def test_the_document_has_what_is_run() -> None:
    assert len(FAMILIES) >= 50
    command = [sys.executable, "tools/families.py", "--check"]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True)
