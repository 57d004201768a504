"""Hugging Face's models loaded in half precision: as near to float64 as with their attention."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from multihead import _native
from multihead.torch import register_transformers
from tolerance import FORWARD, error, tolerance

HALF = [torch.bfloat16, torch.float16]
KINDS = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: "float16"}
SMALL: dict[str, Any] = {"vocab_size": 41, "num_hidden_layers": 2, "num_attention_heads": 6}


def bert() -> Any:
    config = transformers.BertConfig(
        **SMALL, hidden_size=42, intermediate_size=31, max_position_embeddings=40
    )
    return transformers.BertModel(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        **SMALL,
        hidden_size=48,
        num_key_value_heads=2,
        intermediate_size=29,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=41,
        n_embd=42,
        n_layer=2,
        n_head=6,
        n_positions=40,
        bos_token_id=1,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(config)


FAMILIES: dict[str, Callable[[], Any]] = {"bert": bert, "llama": llama, "gpt2": gpt2}


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """What every call of the engine is computed in, and what its inputs are of."""
    found: set[Any] = set()

    class Spy:
        def __getattr__(self, name: str) -> Any:
            def call(*given: Any) -> Any:
                if name.startswith("attention"):
                    found.update([given[0].dtype, *(x.dtype for x in given[1][:3])])
                return getattr(_native, name)(*given)

            return call

    monkeypatch.setattr("multihead.torch.sdpa._native", Spy())
    return found


def saved(family: str, folder: Path) -> Any:
    """A model on the disk whose attention is felt in the outputs."""
    register_transformers()
    model = FAMILIES[family]()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.1 if p.dim() == 1 else p.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return type(model)


def loaded(kind: Any, folder: Path, name: str, dtype: torch.dtype) -> Any:
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation=name).eval()


def results(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The output, and the gradients of all parameters in a row, as NumPy's float64."""
    out = model(**inputs)
    out = out["logits"] if "logits" in out else out["last_hidden_state"]
    shown = inputs["attention_mask"][..., None].bool()
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(out.shape, generator=generator).bfloat16() * shown
    (out * weights.to(out.dtype)).sum().backward()
    grads = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    return {"output": (out.detach() * shown).double().numpy(), "grads": torch.cat(grads).numpy()}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_loaded_in_half_precision(
    family: str, dtype: torch.dtype, tmp_path: Path, dtypes: set[Any]
) -> None:
    kind = saved(family, tmp_path)
    ids = torch.randint(3, 37, (3, 23))
    missing = torch.tensor([[0], [4], [19]])
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(23) < 23 - missing).long()}
    expected = results(loaded(kind, tmp_path, "eager", dtype).double(), inputs)
    ours = results(loaded(kind, tmp_path, "multihead", dtype), inputs)
    assert dtypes == {str(dtype)[6:], dtype}
    theirs = results(loaded(kind, tmp_path, "eager", dtype), inputs)
    slack = tolerance(FORWARD, KINDS[dtype])
    a, b = (error(found["output"], expected["output"]) for found in (ours, theirs))
    assert a <= 1.5 * b + slack
    norm = np.linalg.norm
    a, b = (norm(found["grads"] - expected["grads"]) for found in (ours, theirs))
    assert a <= 1.5 * b + slack * norm(expected["grads"]) / 4


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_decoding_with_a_cache_of_half_precision(
    dtype: torch.dtype, tmp_path: Path, dtypes: set[Any]
) -> None:
    kind = saved("llama", tmp_path)
    takes = inspect.signature(kind.forward).parameters
    parameter = "cache" if "cache" in takes else "past_key_values"
    ids = torch.randint(3, 37, (2, 33))
    with torch.no_grad():
        expected = loaded(kind, tmp_path, "eager", dtype).double()(ids)["logits"]
        errors = []
        for name in ("multihead", "eager"):
            model, cache = loaded(kind, tmp_path, name, dtype), transformers.DynamicCache()
            parts = ids.split([30, 1, 1, 1], 1)
            found = [model(x, **{parameter: cache}, use_cache=True)["logits"] for x in parts]
            assert cache.layers[0].keys.dtype == dtype
            logits = torch.cat(found, 1)
            errors.append(error(logits[:, 30:].double().numpy(), expected[:, 30:].numpy(), name))
    assert dtypes == {str(dtype)[6:], dtype}
    assert errors[0] <= 1.5 * errors[1] + tolerance(FORWARD, KINDS[dtype])
