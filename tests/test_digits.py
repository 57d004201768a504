"""The example on handwritten digits: its gradients, its data, its command and its picture."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from differences import central_difference
from multihead.plot import attention_maps
from tolerance import CENTRAL_DIFFERENCES, assert_close

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "digits"
sys.path.insert(0, str(EXAMPLE))
adam, data, model, nn = map(importlib.import_module, ("adam", "data", "model", "nn"))

SECONDS = 90.0  # the bound on training, on two cores
Layers = dict[str, Callable[[np.random.Generator], Any]]
LAYERS: Layers = {
    "linear": lambda rng: nn.Linear(5, 3, rng, np.float64),
    "layer norm": lambda rng: nn.LayerNorm(5, np.float64),
    "gelu": lambda rng: nn.Gelu(),
    "dropout": lambda rng: nn.Dropout(0.4, np.random.default_rng(8)),
    "no dropout": lambda rng: nn.Dropout(0.4, rng).train(False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_layer(name: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 5))
    layer = LAYERS[name](rng)
    for parameter in layer.parameters().values():
        parameter += rng.normal(size=parameter.shape)
    d_y = rng.normal(size=layer(x).shape)

    def loss() -> float:
        if name == "dropout":
            layer._rng = np.random.default_rng(8)  # the same mask each time
        return float((layer(x) * d_y).sum())

    loss()
    d_x = layer.backward(d_y)
    assert_close(d_x, central_difference(loss, x), CENTRAL_DIFFERENCES, "d_x")
    for key, parameter in layer.parameters().items():
        expected = central_difference(loss, parameter)
        assert_close(layer.grads[key], expected, CENTRAL_DIFFERENCES, f"d_{key}")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradient_of_cross_entropy(smoothing: float, rng: np.random.Generator) -> None:
    scores, labels = rng.normal(size=(4, 5)), np.array([0, 4, 2, 2])
    _, d_scores = nn.cross_entropy(scores, labels, smoothing)
    expected = central_difference(lambda: nn.cross_entropy(scores, labels, smoothing)[0], scores)
    assert_close(d_scores, expected, CENTRAL_DIFFERENCES)


def test_cross_entropy_of_equal_and_of_huge_scores() -> None:
    loss, _ = nn.cross_entropy(np.zeros((2, 10)), np.array([3, 7]))
    assert loss == pytest.approx(np.log(10))
    loss, d_scores = nn.cross_entropy(np.array([[1e4, 0.0]]), np.array([1]))
    assert loss == pytest.approx(1e4)
    assert np.isfinite(d_scores).all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_of_the_classifier(dropout: float, rng: np.random.Generator) -> None:
    x, labels = rng.normal(size=(3, 4, 2)), np.array([0, 2, 1])

    def build() -> Any:
        return model.Classifier(
            4, 2, width=6, heads=2, classes=3, dropout=dropout, seed=5, dtype=np.float64
        )

    trained = build()
    parameters = trained.parameters()

    def loss() -> float:
        same_masks = build()
        same_masks.load(parameters)
        return float(nn.cross_entropy(same_masks(x)[0], labels)[0])

    trained.backward(nn.cross_entropy(trained(x)[0], labels)[1])
    largest = max(float(np.abs(grad).max()) for grad in trained.grads.values())
    for name, parameter in parameters.items():
        # Along one random direction for each parameter; it goes through all of its entries.
        direction, start, along = rng.normal(size=parameter.shape), parameter.copy(), np.zeros(1)

        def moved(
            parameter: Any = parameter, start: Any = start, step: Any = direction, t: Any = along
        ) -> float:
            parameter[...] = start + t * step
            return loss()

        expected = central_difference(moved, along)
        parameter[...] = start
        actual = np.array([(trained.grads[name] * direction).sum()])
        assert_close(actual, expected, CENTRAL_DIFFERENCES, f"d_{name}", scale=largest)


def test_classifier_returns_weights_on_request(rng: np.random.Generator) -> None:
    classifier = model.Classifier(4, 2, width=6, heads=2)
    classifier.train(False)
    x = rng.normal(size=(3, 4, 2)).astype(np.float32)
    scores, maps = classifier(x, need_weights=True)
    assert scores.shape == (3, 10)
    assert scores.dtype == np.float32
    assert [weights.shape for weights in maps] == [(3, 2, 5, 5)] * 2
    np.testing.assert_allclose(maps[-1].sum(axis=-1), 1, rtol=1e-5)
    assert classifier(x)[1] == [None, None]
    np.testing.assert_array_equal(classifier(x)[0], scores)


def test_classifier_refuses_parameters_of_another() -> None:
    classifier = model.Classifier(4, 2, width=6, heads=2)
    with pytest.raises(ValueError, match=r"blocks\.2\.attention\.in_proj_bias"):
        classifier.load(model.Classifier(4, 2, width=6, heads=2, blocks=3).parameters())


def test_adam_finds_the_minimum_of_a_bowl() -> None:
    parameters = {"w": np.array([[3.0, -2.0]]), "b": np.array([5.0])}
    target = {"w": np.array([[1.0, 4.0]]), "b": np.array([-1.0])}
    optimizer = adam.Adam(parameters, weight_decay=0.0)
    for step in range(400):
        grads = {name: p - target[name] for name, p in parameters.items()}
        before = {name: p.copy() for name, p in parameters.items()}
        optimizer.step(grads, adam.warmup_cosine(step, 400, 0.1))
        if step == 0:  # of the size of the rate, whatever the size of the gradient
            assert_close(before["w"] - parameters["w"], 0.1 / 40 * np.sign(grads["w"]), 1e-6)
    for name, p in parameters.items():
        assert_close(p, target[name], 1e-3, name)


def test_adam_lets_matrices_decay_and_nothing_else() -> None:
    parameters = {"w": np.ones((2, 2)), "b": np.ones(2)}
    adam.Adam(parameters, weight_decay=0.5).step({k: 0 * p for k, p in parameters.items()}, 0.1)
    np.testing.assert_allclose(parameters["w"], 0.95)
    np.testing.assert_array_equal(parameters["b"], 1)


def test_learning_rate_rises_then_falls() -> None:
    rates = [adam.warmup_cosine(step, 100, 2.0) for step in range(101)]
    assert rates.index(max(rates)) == 9
    assert max(rates) == 2.0
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[100] == 0
    assert adam.warmup_cosine(0, 1, 2.0) == 2.0


def test_split_is_stratified_and_follows_the_seed() -> None:
    split = data.load_split(3)
    assert split.train_images.shape == (1347, 8, 8)
    assert split.test_images.shape == (450, 8, 8)
    assert split.train_images.dtype == np.float32
    assert split.train_images.min() == 0
    assert split.train_images.max() == 1
    held_out = np.bincount(split.test_labels)
    everything = held_out + np.bincount(split.train_labels)
    assert everything.sum() == 1797
    assert np.abs(held_out - everything / 4).max() < 1
    np.testing.assert_array_equal(split.test_images, data.load_split(3).test_images)
    assert (split.test_labels != data.load_split(4).test_labels).any()


def test_patches_go_row_by_row() -> None:
    image = np.arange(24).reshape(1, 4, 6)
    cut = data.patches(image, 2)
    assert cut.shape == (1, 6, 4)
    np.testing.assert_array_equal(cut[0, 1], [2, 3, 8, 9])
    np.testing.assert_array_equal(cut[0, 3], [12, 13, 18, 19])


def test_jitter_moves_each_image_a_little(rng: np.random.Generator) -> None:
    images = np.zeros((200, 8, 8), np.float32)
    images[:, 3:5, 3:5] = 1
    moved = data.jitter(images, rng)
    assert moved.shape == images.shape
    assert moved.dtype == np.float32
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert len(np.unique(moved.reshape(200, -1), axis=0)) == 200
    mass = moved.sum(axis=(1, 2))
    assert mass.mean() == pytest.approx(4, rel=0.05)
    centre = (moved.sum(axis=1) * np.arange(8)).sum(axis=1) / mass
    assert centre.mean() == pytest.approx(3.5, abs=0.1)
    assert centre.std() == pytest.approx(0.25, rel=0.2)


def run(out: Path, *options: str) -> str:
    """Run the command of the example and return what it prints."""
    command = [sys.executable, str(EXAMPLE / "train.py"), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def share(pattern: str, text: str) -> float:
    found = re.search(pattern + r"\s+([\d.]+)\s*%", text)
    assert found, text
    return float(found[1]) / 100


@pytest.mark.timeout(600)
def test_training_reaches_97_percent_and_survives_a_reload(tmp_path: Path) -> None:
    printed = run(tmp_path)
    accuracy = share("test accuracy", printed)
    assert share("loaded into a new model", printed) == accuracy
    assert share(r"epoch +60 .*held-out accuracy", printed) == accuracy
    took = re.search(r"after ([\d.]+) s of training", printed)
    assert took is not None
    assert float(took[1]) < SECONDS
    assert accuracy >= 0.97


def test_command_repeats_itself_and_leaves_its_files(tmp_path: Path) -> None:
    first, second = (run(tmp_path / name, "--epochs", "2", "--seed", "4") for name in "ab")
    assert len(re.findall(r"^epoch +[12] +loss [\d.]+ +held-out", first, re.MULTILINE)) == 2
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in "ab"]
    assert weights[0].keys() == weights[1].keys()
    for name, array in weights[0].items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, weights[1][name])
    assert share("test accuracy", first) == share("test accuracy", second)
    picture = (tmp_path / "a" / "attention.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_a_picture_has_a_row_for_each_head_and_their_mean(rng: np.random.Generator) -> None:
    images, weights = rng.random((3, 8, 8)), rng.random((3, 2, 4, 4))
    figure = attention_maps(images, weights, titles=["a", "b", "c"])
    assert len(figure.axes) == 3 * 4 + 1
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "c"]
    labels = [axes.get_ylabel() for axes in figure.axes[:-1:3]]
    assert labels == ["image", "head 1", "head 2", "mean"]
    drawn = figure.axes[3 * 3 + 1].images[-1].get_array()
    np.testing.assert_allclose(drawn, weights[1].mean(axis=0))


def test_a_picture_of_averaged_weights_has_one_map(rng: np.random.Generator) -> None:
    assert len(attention_maps(rng.random((2, 8, 8)), rng.random((2, 4, 4))).axes) == 2 * 2 + 1
    assert len(attention_maps(rng.random((1, 8, 8)), np.zeros((1, 1, 2, 3))).axes) == 2 + 1


@pytest.mark.parametrize(
    ("images", "weights", "titles", "message"),
    [
        ((8, 8), (1, 4, 4), None, r"images: expected \(N, height, width\), got \(8, 8\)"),
        ((0, 8, 8), (0, 4, 4), None, r"images: expected .* got \(0, 8, 8\)"),
        ((2, 8, 8), (3, 4, 4), None, r"weights: expected \(2, H, rows, columns\) or .*\(3, 4, 4\)"),
        ((2, 8, 8), (2, 16), None, r"weights: expected .* got \(2, 16\)"),
        ((2, 8, 8), (2, 4, 4), ["one"], "titles: expected 2 of them, got 1"),
    ],
)
def test_a_picture_refuses_shapes_that_disagree(
    images: tuple[int, ...], weights: tuple[int, ...], titles: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attention_maps(np.zeros(images), np.zeros(weights), titles=titles)


def test_pictures_without_matplotlib_name_the_extra() -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np; from multihead.plot import attention_maps\n"
        "try: attention_maps(np.zeros((1, 8, 8)), np.zeros((1, 4, 4)))\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert 'pip install "multihead[plot]"' in done.stdout, done.stderr
