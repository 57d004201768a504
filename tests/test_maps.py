"""Attention maps as a page: what it holds, what it costs, and what makes it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bert_models
from multihead import plot
from multihead.cli import main
from multihead.maps import BertEncoder, page
from multihead.maps.codes import packed, unpacked

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    scores = np.exp(rng.normal(size=shape) * 3)
    return scores / scores.sum(axis=-1, keepdims=True)


def held(text: str) -> Any:
    found = DATA.search(text)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("count", [1, 2, 7, 10_000])
def test_codes_come_back_within_their_bound(count: int, rng: np.random.Generator) -> None:
    given = np.concatenate([[0.0, 1.0, 1e-9], 10.0 ** rng.uniform(-9, 0, count)])[-count:]
    text = packed(given)
    assert len(text) <= 2 * count + 4
    again = unpacked(text, count)
    assert (np.abs(again - given) <= np.sqrt(given) / 4095 + 1e-7).all()
    assert np.abs(again - given).max() <= 0.00025


def test_a_page_holds_all_weights_and_asks_nothing_of_a_network(rng: np.random.Generator) -> None:
    given = [weights(rng, 2, 3, 4), weights(rng, 5, 3, 4)]
    text = page(given, ["a", "b", "c"], keys=["k", "l", "m", "n"], title="A < B", note="c & d")
    data = held(text)
    assert (data["tokens"], data["keys"]) == (["a", "b", "c"], ["k", "l", "m", "n"])
    for layer, expected in zip(data["layers"], given, strict=True):
        again = unpacked(layer["codes"], expected.size).reshape(expected.shape)
        np.testing.assert_allclose(again, expected, atol=0.00025)
        assert layer["heads"] == len(expected)
    assert "<h1>A &lt; B</h1>\n<p>c &amp; d</p>" in text
    assert not re.search(r"https?:|//[a-z]|\bsrc=|<link|\bimport\b|fetch\(|url\(", text)
    assert "default-src 'none'" in text


def test_tokens_cannot_leave_their_place(rng: np.random.Generator) -> None:
    words = ["</script><script>alert(1)</script>", "<!--", "\u2028"]
    text = page(weights(rng, 1, 1, 3, 3), words)
    assert held(text)["tokens"] == words
    assert "alert" not in DATA.sub("", text)


def test_a_page_of_128_tokens_is_below_3_megabytes(rng: np.random.Generator) -> None:
    text = page(weights(rng, 6, 12, 128, 128), ["word"] * 128)
    assert len(text.encode()) < 3e6


@pytest.mark.parametrize(
    ("given", "tokens", "error", "message"),
    [
        (np.full((2, 3, 3), 1 / 3), 3, ValueError, r"weights\[0\]: .* average_attn_weights=False"),
        (np.full((1, 2, 3, 3), 1 / 3), 2, ValueError, r"weights\[0\]: expected \(H, 2, 2\)"),
        (np.full((1, 2, 3, 3), 2.0), 3, ValueError, r"from 0 to 1, got 2 to 2; .*layer\.eval"),
        (np.full((1, 2, 3, 3), np.nan), 3, ValueError, "weights from 0 to 1, got nan"),
        (np.full((1, 2, 3, 3), -0.1), 3, ValueError, "weights from 0 to 1, got -0.1"),
        (np.ones((1, 2, 3, 3), int), 3, TypeError, r"weights\[0\]: expected floats, got int64"),
        (np.ones((0, 2, 3, 3)), 3, ValueError, "weights: expected at least one layer, got none"),
        (np.ones((1, 2, 3, 3)), 0, ValueError, "tokens: expected at least one, got none"),
        (np.ones((1, 2, 3, 3)), "abc", TypeError, "tokens: expected a sequence of str, got str"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    given: Any, tokens: Any, error: type[Exception], message: str
) -> None:
    names = [f"t{n}" for n in range(tokens)] if isinstance(tokens, int) else tokens
    with pytest.raises(error, match=message):
        page(given, names)


def test_the_command_writes_a_page_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = bert_models.write(tmp_path / "model")
    files = [tmp_path / name for name in ("maps.html", "head.svg", "layer.png")]
    said = ["maps", str(model), "The river banks."]
    picture = ["--picture", str(files[1]), "--layer", "2", "--head", "4"]
    assert main([*said, "--html", str(files[0]), *picture]) == 0
    assert main([*said, "--picture", str(files[2]), "--layer", "3"]) == 0
    data = held(files[0].read_text())
    assert data["tokens"] == ["[CLS]", "the", "river", "bank", "##s", ".", "[SEP]"]
    assert [layer["heads"] for layer in data["layers"]] == [4, 4, 4]
    tokens, weights = BertEncoder(model)("The river banks.")
    expected = [tmp_path / "expected.svg", tmp_path / "expected.png"]
    plot.save(plot.attention_map(weights[1, 3], tokens, title="layer 2, head 4"), expected[0])
    plot.save(plot.head_grid(weights[2], tokens, title="layer 3"), expected[1])
    for written, drawn in zip(files[1:], expected, strict=True):
        assert written.read_bytes() == drawn.read_bytes()
    printed = capsys.readouterr().out
    assert re.search(r"maps.html: 7 tokens, [1-9]\d+ kB", printed)
    assert "head.svg: layer 2, head 4" in printed
    assert "layer.png: layer 3, all heads" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a file with --html or --picture"),
        (["--html", "no/page.html"], "there is no folder no"),
        (["--picture", "a.svg"], "--picture needs a layer"),
        (["--html", "a.html", "--head", "1"], "name a file with --picture"),
        (["--picture", "a.svg", "--layer", "4"], "--layer: expected an integer from 1 to 3, got 4"),
        (["--picture", "a.svg", "--layer", "1", "--head", "0"], "--head: expected an integer from"),
        (["--picture", "a.jpeg2", "--layer", "1"], "jpeg2"),
    ],
)
def test_a_wrong_command_is_explained_and_writes_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = bert_models.write(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert main(["maps", str(model), "the river", *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_page_needs_neither_tokenizers_nor_matplotlib() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['safetensors', 'tokenizers', 'matplotlib'])\n"
        "import numpy as np; from multihead.maps import page\n"
        "print(len(page(np.ones((1, 1, 1, 1)), ['a'])))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 1000


def test_numbers_for_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = bert_models.write(tmp_path / "model")
    assert main(["maps", str(model), "the river", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    weights = np.array(told["weights"])
    assert weights.shape[2:] == (len(told["tokens"]),) * 2
    assert np.abs(weights.sum(-1) - 1).max() < 1e-4
    file = tmp_path / "maps.json"
    assert main(["maps", str(model), "the river", "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == told
