"""The encoder behind attention maps: its weights are transformers', its files are checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

import bert_models
from multihead.maps import BertEncoder

TEXT = "The river banks was closed."
IDS = [2, 4, 5, 6, 10, 7, 8, 9, 3]


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("names", ["plain", "of a larger model", "of old norms"])
def test_weights_are_those_of_transformers(activation: str, names: str, tmp_path: Path) -> None:
    options = {"hidden_act": activation, "_attn_implementation": "eager"}
    held = bert_models.tensors()
    if names != "plain":
        held = {f"bert.{name}": x for name, x in held.items()} | {"cls.bias": np.ones(3)}
    if names == "of old norms":
        ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in ends.items():
            held = {name.replace(new, old): x for name, x in held.items()}
    encoder = BertEncoder(bert_models.write(tmp_path, held, hidden_act=activation))
    tokens, weights = encoder(TEXT)

    config = transformers.BertConfig(**(bert_models.CONFIG | options))
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    state = {name: torch.from_numpy(x) for name, x in bert_models.tensors().items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert missing.missing_keys == []
    with torch.no_grad():
        found = theirs(torch.tensor([IDS]), output_attentions=True).attentions
    expected = torch.cat(found).numpy()
    assert tokens == [bert_models.WORDS[n] for n in IDS]  # neither padded nor cut
    assert weights.shape == expected.shape == (3, 4, 9, 9)
    assert np.abs(expected - 1 / 9).max() > 0.5  # no even maps, which anything would match
    np.testing.assert_allclose(weights, expected, atol=2e-5)


def test_a_text_too_long_is_refused(tmp_path: Path) -> None:
    encoder = BertEncoder(bert_models.write(tmp_path))
    assert encoder.limit == 16
    assert encoder("the " * 14)[1].shape == (3, 4, 16, 16)
    with pytest.raises(ValueError, match=r"text: expected 1 to 16 tokens, .* got 17"):
        encoder("the " * 15)


def test_half_precision_is_read(tmp_path: Path) -> None:
    held = {name: x.astype(np.float16) for name, x in bert_models.tensors().items()}
    rounded = {name: x.astype(np.float32) for name, x in held.items()}
    _, found = BertEncoder(bert_models.write(tmp_path / "half", held))(TEXT)
    _, expected = BertEncoder(bert_models.write(tmp_path / "single", rounded))(TEXT)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "roberta"}, "model_type: expected 'bert', got 'roberta'"),
        ({"hidden_act": "silu"}, "hidden_act: expected one of gelu, .* got 'silu'"),
        ({"position_embedding_type": "relative_key"}, "expected 'absolute', got 'relative_key'"),
        ({"hidden_size": "24"}, "hidden_size: expected an integer, got '24'"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected an integer at least 1, got 0"),
        ({"num_attention_heads": 5}, "embed_dim: expected a multiple of num_heads = 5"),
        ({"num_hidden_layers": 4}, "expected a tensor encoder.layer.3.*, got none of that name"),
        ({"intermediate_size": 41}, r"intermediate.dense.weight: expected \(41, 24\), got"),
        ({"max_position_embeddings": 17}, r"position_embeddings.weight: expected \(17, 24\)"),
        ({"layer_norm_eps": None}, "layer_norm_eps: expected a number, got None"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = bert_models.write(tmp_path)
    (folder / "config.json").write_text(json.dumps(bert_models.CONFIG | options))
    with pytest.raises((TypeError, ValueError), match=message):
        BertEncoder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json: expected JSON"),
        ("config.json", b"[" * 100_000, "config.json: expected JSON"),
        ("config.json", b"[]", "model_type: expected 'bert', got 'list'"),
        ("model.safetensors", b"what", "model.safetensors: expected a safetensors file"),
        ("tokenizer.json", b"{}", "tokenizer.json: expected a tokenizer"),
        ("tokenizer.json", b"\xff", "tokenizer.json: expected a tokenizer"),
    ],
)
def test_files_that_are_something_else_are_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    folder = bert_models.write(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        BertEncoder(folder)


def test_words_beyond_the_embeddings_are_refused(tmp_path: Path) -> None:
    held = bert_models.tensors()
    held["embeddings.word_embeddings.weight"] = held["embeddings.word_embeddings.weight"][:6]
    encoder = BertEncoder(bert_models.write(tmp_path, held))
    with pytest.raises(ValueError, match=r"text: expected tokens below 6, .* got 6"):
        encoder("the bank")


def test_bfloat16_is_refused_in_words(tmp_path: Path) -> None:
    folder = bert_models.write(tmp_path)
    state = {name: torch.from_numpy(x).bfloat16() for name, x in bert_models.tensors().items()}
    from safetensors.torch import save_file as save_tensors

    save_tensors(state, str(folder / "model.safetensors"))
    with pytest.raises(ValueError, match="expected F32 or F16, got BF16; convert the file"):
        BertEncoder(folder)


def test_a_model_is_found_in_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "some_model" / "files" / "model"
    bert_models.write(inside)
    (tmp_path / "some_model" / "__init__.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(inside)  # where no folder has its name
    assert BertEncoder("some-model")("the river")[0] == ["[CLS]", "the", "river", "[SEP]"]
    save_file({}, tmp_path / "some_model" / "model.safetensors")  # no model by itself
    assert BertEncoder("some_model").limit == 16
    bert_models.write(tmp_path / "some_model" / "other")
    with pytest.raises(FileNotFoundError, match="expected one folder with a model in some_model"):
        BertEncoder("some-model")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-package", "or the name of an installed package, got 'no-such-package'"),
        ("no/such/folder", "which is neither"),
        ("no.such.package", "which is neither"),
        ("json", "expected one folder with a model in json, got none"),
        (".", "lacks config.json, model.safetensors, tokenizer.json"),
    ],
)
def test_a_model_that_is_not_there_is_named(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        BertEncoder(model)


def test_without_its_libraries_the_encoder_names_the_extra(tmp_path: Path) -> None:
    folder = bert_models.write(tmp_path)
    code = (
        "import sys; sys.modules[sys.argv[2]] = None\n"
        "from multihead.maps import BertEncoder\n"
        "try: BertEncoder(sys.argv[1])\n"
        "except ImportError as error: print(error)"
    )
    for name in ("safetensors", "tokenizers"):
        command = [sys.executable, "-c", code, str(folder), name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert 'pip install "multihead[maps]"' in done.stdout, done.stderr
