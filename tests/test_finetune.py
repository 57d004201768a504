"""The example of fine-tuning: its gradients, its data, what it learns."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from differences import central_difference
from sentence_models import make_model
from tolerance import CENTRAL_DIFFERENCES, assert_close

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
block, classifier, data, training = (
    importlib.import_module(f"finetuning.{name}")
    for name in ("block", "classifier", "data", "training")
)
encoder, model_files = (
    importlib.import_module(f"sentences.{name}") for name in ("encoder", "model_files")
)
nn = importlib.import_module("nn")

STARTS = np.array([0, 2, 3, 7])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder)
    return model_files.ModelFiles.load(folder)


def blocks_of(files: Any, dropout: float, dtype: Any) -> list[Any]:
    sizes = files.sizes
    return [
        block.Block(files.weights, str(i), sizes, dropout, seed=i, dtype=dtype)
        for i in range(sizes.blocks)
    ]


@pytest.mark.parametrize("name", ["gelu", "pool"])
def test_gradients_of_a_layer(name: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(7, 5))
    layer = block.Gelu() if name == "gelu" else classifier.Pool()
    given = () if name == "gelu" else (STARTS,)
    d_y = rng.normal(size=layer(x, *given).shape)
    d_x = layer.backward(d_y)
    numeric = central_difference(lambda: float((layer(x, *given) * d_y).sum()), x)
    assert_close(d_x, numeric, CENTRAL_DIFFERENCES)


def test_gelu_of_float32_is_that_of_float64(rng: np.random.Generator) -> None:
    x, d_y = rng.normal(0, 2, (2, 400))
    single, double = block.Gelu(), block.Gelu()
    assert_close(single(x.astype(np.float32)), double(x), 1e-6)
    d_x = single.backward(d_y.astype(np.float32))
    assert d_x.dtype == np.float32
    assert_close(d_x, double.backward(d_y), 1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_of_blocks_and_head(tiny: Any, dropout: float) -> None:
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(7, 32)), np.array([1, 0, 2])

    def build() -> Any:  # anew, so that dropout draws the same masks
        head = nn.Linear(32, 3, np.random.default_rng(5), np.float64)
        return classifier.Classifier(blocks_of(tiny, dropout, np.float64), head)

    trained = build()
    parameters = trained.parameters()
    assert len(parameters) == 2 * 12 + 2

    def loss() -> float:
        model = build()
        for name, parameter in model.parameters().items():
            parameter[...] = parameters[name]
        return float(nn.cross_entropy(model(x, STARTS), labels)[0])

    trained.backward(nn.cross_entropy(trained(x, STARTS), labels)[1])
    largest = max(float(np.abs(grad).max()) for grad in trained.grads.values())
    for name, parameter in parameters.items():
        # along one random direction, through all of its entries
        direction, start, along = rng.normal(size=parameter.shape), parameter.copy(), np.zeros(1)
        direction /= np.linalg.norm(direction)

        def moved(
            parameter: Any = parameter, start: Any = start, step: Any = direction, t: Any = along
        ) -> float:
            parameter[...] = start + t * step
            return loss()

        expected = central_difference(moved, along)
        parameter[...] = start
        actual = np.array([(trained.grads[name] * direction).sum()])
        assert_close(actual, expected, CENTRAL_DIFFERENCES, f"d_{name}", scale=largest)


def test_gradient_of_the_input_of_a_block(tiny: Any, rng: np.random.Generator) -> None:
    one = blocks_of(tiny, 0.0, np.float64)[0]
    x = rng.normal(size=(7, 32))
    d_y = rng.normal(size=one(x, STARTS).shape)
    d_x = one.backward(d_y)
    numeric = central_difference(lambda: float((one(x, STARTS) * d_y).sum()), x)
    assert_close(d_x, numeric, CENTRAL_DIFFERENCES)


def test_blocks_that_have_not_learned_are_the_encoder_s(tiny: Any) -> None:
    embed = encoder.Encoder(tiny)
    ids = [x.ids for x in tiny.tokenizer.encode_batch(["read the file", "sum", "find a line"])]
    x = embed.hidden(ids, 0)
    blocks = blocks_of(tiny, 0.5, np.float32)
    model = classifier.Classifier(blocks, nn.Linear(32, 2, np.random.default_rng(0)))
    model.train(False)
    y = x.values
    for one in blocks:
        y = one(y, x.offsets)
    assert_close(classifier.Pool()(y, x.offsets) / np.sqrt(32), embed.encode(ids), 1e-5)


def test_no_document_is_in_two_parts() -> None:
    sentences = data.load(["textwrap", "statistics", "shutil"], most=40)
    assert len(set(sentences.texts)) == len(sentences.texts) == len(sentences.labels)
    assert np.bincount(sentences.labels).max() == 40
    parts = data.split(sentences.documents, 1)
    assert sorted(np.concatenate(parts)) == list(range(len(sentences.texts)))
    held = [set(sentences.documents[part]) for part in parts]
    assert len(set.union(*held)) == sum(map(len, held))
    assert all(held)
    assert (data.split(sentences.documents, 2)[2].tolist()) != parts[2].tolist()


def test_blocks_learn_what_a_head_alone_cannot(tiny: Any) -> None:
    """Whether the first word comes again: a matter of pairs of tokens."""
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(4, 12, 6), 3] for _ in range(160)]
    labels = np.array([int(x[1] in x[2:]) for x in ids])
    embed = encoder.Encoder(tiny)
    tokens = list(embed.hidden(ids, 0))
    x = embed.encode(ids) * np.sqrt(np.float32(32))
    places = training.Places(np.arange(120), np.arange(120, 160), np.arange(120))
    head = training.train_head(x, labels, places, 2)
    before = training.Score.of(head(x[places.learned]), labels[places.learned])
    model = classifier.Classifier(blocks_of(tiny, 0.1, np.float32), head)
    losses = []

    def say(epoch: int, loss: float, validation: Any) -> None:
        losses.append(loss)

    training.fine_tune(model, (tokens, labels), places, training.Plan(40, 0, rate=3e-3), say)
    after = training.Score.of(
        training.scores_of(model, tokens, places.learned), labels[places.learned]
    )
    assert len(losses) == 40
    assert losses[-1] < 0.7 * before.loss
    assert after.accuracy > before.accuracy


@pytest.mark.timeout(150)
def test_the_command(tiny: Any) -> None:
    command = [sys.executable, str(EXAMPLES / "finetune.py"), "--model", str(tiny.folder)]
    options = ("--sentences", "120", "--seeds", "2", "--epochs", "1")
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^seed [01]   epoch 1   loss \d", done.stdout, re.MULTILINE)) == 2
    row = r"^{} +(\d+\.\d) +(\d+\.\d) +(-?\d+\.\d)$"
    rows = [
        re.search(row.format(x), done.stdout, re.MULTILINE) for x in ("seed 0", "seed 1", "mean")
    ]
    values = np.array([[float(x) for x in found.groups()] for found in rows if found])
    assert_close(values[2], values[:2].mean(axis=0), 0.01, scale=10)
    np.testing.assert_allclose(values[:, 2], values[:, 1] - values[:, 0], atol=0.11)
