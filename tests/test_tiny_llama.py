"""The example of a language model: its gradients, PyTorch's twin of it, its cache, its command."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention, silu

from differences import central_difference
from tolerance import CENTRAL_DIFFERENCES, assert_close

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES / "tiny_llama"), str(EXAMPLES / "digits")]
adam, layers, llama, sampling, texts, training = map(
    importlib.import_module, ("adam", "layers", "llama", "sampling", "text", "training")
)

SMALL = llama.Sizes(width=8, heads=4, key_heads=2, hidden=5, blocks=2, window=3, symbols=7)
LAYERS = {
    "matrix": lambda rng: layers.Matrix(5, 3, rng, np.float64),
    "rms norm": lambda rng: layers.RMSNorm(5, np.float64),
    "swiglu": lambda rng: layers.SwiGLU(5, 4, rng, np.float64),
}


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """On busy cores, those of BLAS and of OpenMP wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_layer(name: str, rng: np.random.Generator) -> None:
    x, layer = rng.normal(size=(2, 3, 5)), LAYERS[name](rng)
    d_y = rng.normal(size=layer(x).shape)
    d_x = layer.backward(d_y)
    numeric = central_difference(lambda: float((layer(x) * d_y).sum()), x)
    assert_close(d_x, numeric, CENTRAL_DIFFERENCES, "d_x")


def test_gradients_of_the_model(rng: np.random.Generator) -> None:
    model = llama.TinyLlama(SMALL, dtype=np.float64)
    batch = tuple(rng.integers(0, 7, (2, 2, 6)))
    _, d_scores = training.loss_of(model, batch)
    model.backward(d_scores)
    grads = {name: grad.copy() for name, grad in model.grads.items()}
    assert len(grads) == 3 + 2 * 9
    for name, parameter in model.parameters().items():
        numeric = central_difference(lambda: training.loss_of(model, batch)[0], parameter)
        assert_close(grads[name], numeric, CENTRAL_DIFFERENCES, name, scale=1e-2)


class Twin:
    """The model in PyTorch's own operations, from the same parameters."""

    def __init__(self, model: Any) -> None:
        self.sizes, given = model.sizes, model.parameters()
        self.p = {name: torch.from_numpy(x.copy()).requires_grad_() for name, x in given.items()}

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        heads, key_heads = self.sizes.heads, self.sizes.key_heads
        n, length, width = x.shape
        dim = width // heads

        def by_head(of: str, count: int) -> torch.Tensor:
            weight = self.p[f"{name}.{of}_proj_weight"]
            return (x @ weight.T).view(n, length, count, dim).transpose(1, 2)

        rates = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
        angles = torch.outer(torch.arange(length), rates).to(x.dtype)
        cosine, sine = angles.cos().tile(2), angles.sin().tile(2)

        def turned(y: torch.Tensor) -> torch.Tensor:
            a, b = y.chunk(2, -1)
            return y * cosine + torch.cat([-b, a], -1) * sine

        q, k = turned(by_head("q", heads)), turned(by_head("k", key_heads))
        k, v = (y.repeat_interleave(heads // key_heads, 1) for y in (k, by_head("v", key_heads)))
        steps = torch.arange(length)[:, None] - torch.arange(length)
        seen = (steps >= 0) & (steps < self.sizes.window)
        out = scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        return out @ self.p[f"{name}.out_proj.weight"].T

    def scores(self, text: torch.Tensor) -> torch.Tensor:
        p = self.p

        def normal(name: str, x: torch.Tensor) -> torch.Tensor:
            return rms_norm(x, x.shape[-1:], p[f"{name}.weight"], 1e-6)

        x = p["embedding.weight"][text]
        for block in (f"blocks.{i}" for i in range(self.sizes.blocks)):
            x = x + self.attention(f"{block}.attention", normal(f"{block}.norm1", x))
            y = normal(f"{block}.norm2", x)
            product = silu(y @ p[f"{block}.gate.weight"].T) * (y @ p[f"{block}.up.weight"].T)
            x = x + product @ p[f"{block}.down.weight"].T
        return normal("norm", x) @ p["head.weight"].T

    def loss(self, batch: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        text, following = (torch.from_numpy(x.astype(np.int64)) for x in batch)
        return cross_entropy(self.scores(text).flatten(0, 1), following.flatten())

    def train(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], steps: int) -> None:
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.p.values() if p.ndim > 1], "weight_decay": 0.01},
                {"params": [p for p in self.p.values() if p.ndim == 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.99),
        )
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = adam.warmup_cosine(step, steps, training.PEAK_RATE)
            optimizer.zero_grad()
            self.loss(next(batches)).backward()
            torch.nn.utils.clip_grad_norm_(list(self.p.values()), training.LARGEST_NORM)
            optimizer.step()

    def held_out_loss(self, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> float:
        with torch.no_grad():
            total = [(float(self.loss(batch)), batch[0].size) for batch in batches]
        return sum(loss * size for loss, size in total) / sum(size for _, size in total)


def test_scores_are_those_of_pytorchs_operations() -> None:
    model = llama.TinyLlama(llama.Sizes(window=20), seed=2)
    text = texts.load_text()[0][:128].reshape(2, 64)
    with torch.no_grad():
        expected = Twin(model).scores(torch.from_numpy(text.astype(np.int64)))
    assert_close(model(text), expected.numpy(), 1e-5)


def test_it_learns_what_pytorchs_operations_learn() -> None:
    batch, length, steps = 4, 96, 60
    text, held_out = texts.load_text()
    model = llama.TinyLlama(llama.Sizes(window=48), seed=3)
    twin = Twin(model)
    learned: list[float] = []
    training.train(
        model,
        texts.random_batches(text, batch, length, 3),
        steps,
        lambda step, loss: learned.append(loss),
    )
    twin.train(texts.random_batches(text, batch, length, 3), steps)
    part = held_out[: 40 * length + 1]
    ours = training.held_out_loss(model, texts.whole_batches(part, batch, length))
    theirs = twin.held_out_loss(texts.whole_batches(part, batch, length))
    assert ours == pytest.approx(theirs, rel=0.03)
    assert len(learned) == steps
    assert learned[0] > 5
    assert ours < 3.2


def test_training_repeats_itself() -> None:
    text, _ = texts.load_text()
    models = [llama.TinyLlama(SMALL, seed=5) for _ in range(2)]
    for model in models:
        batches = texts.random_batches(text % 7, 2, 8, 5)
        training.train(model, batches, 3, lambda step, loss: None)
    first, second = (model.parameters() for model in models)
    for name, parameter in first.items():
        np.testing.assert_array_equal(parameter, second[name], name)


@pytest.mark.parametrize("choice", [sampling.Choice(top_k=1), sampling.Choice(seed=4)])
def test_the_cache_changes_no_byte(choice: Any) -> None:
    model = llama.TinyLlama(llama.Sizes(window=32), seed=1)
    prompt = texts.load_text()[1][:100].tobytes()  # longer than a cache, which holds 64
    cached, whole = (list(sampling.sample(model, prompt, 30, choice, c)) for c in (True, False))
    assert cached == whole
    assert len(set(cached)) > 1


def test_the_cache_saves_time() -> None:
    model, context = llama.TinyLlama(llama.Sizes()), texts.load_text()[1][:700].tobytes()
    fast, slow = (sampling.speed(model, context, 10, cached) for cached in (True, False))
    assert fast > 2 * slow


def test_draws_are_of_the_likeliest() -> None:
    scores, rng = np.array([0.0, 3.0, 2.0, -1.0], np.float32), np.random.default_rng(0)
    assert {sampling.draw(scores, sampling.Choice(1.0, 2), rng) for _ in range(50)} == {1, 2}
    assert {sampling.draw(scores, sampling.Choice(1.0, 1), rng) for _ in range(50)} == {1}
    assert {sampling.draw(scores, sampling.Choice(0.01, 4), rng) for _ in range(50)} == {1}


def test_gradients_are_shortened_together() -> None:
    grads = {"a": np.array([3.0]), "b": np.array([0.0, 4.0])}
    training.clip(grads, 10.0)
    assert grads["a"] == 3
    training.clip(grads, 1.0)
    assert_close(grads["a"], np.array([0.6]), 1e-12)
    assert_close(grads["b"], np.array([0.0, 0.8]), 1e-12)


def test_the_text_is_split_once_and_read_whole() -> None:
    text, held_out = texts.load_text()
    assert len(text) > 8 * len(held_out) > 100_000
    batches = list(texts.whole_batches(held_out, 16, 100))
    read, following = (
        np.concatenate([x.ravel() for x in part]) for part in zip(*batches, strict=True)
    )
    assert len(held_out) - len(read) <= 100
    np.testing.assert_array_equal(read, held_out[: len(read)])
    np.testing.assert_array_equal(following, held_out[1 : len(read) + 1])
    some, next_ones = next(texts.random_batches(text, 3, 20, 0))
    assert some.shape == next_ones.shape == (3, 20)
    np.testing.assert_array_equal(some[:, 1:], next_ones[:, :-1])


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(150)
def test_the_command(tmp_path: Path) -> None:
    options = ("--steps", "4", "--write", "30", "--context", "200", "--out", str(tmp_path))
    printed = run(str(EXAMPLES / "tiny_llama.py"), *options)
    assert re.search(r"step +4 +loss \d\.\d{3} +held-out \d\.\d{3}", printed)
    assert re.search(r"held-out loss +\d\.\d{3} nats or \d\.\d{3} bits a byte", printed)
    assert "The following" in printed
    speeds = r"after 200 bytes: \d+ tokens a second with the cache, [\d.]+ without: \d+ times"
    assert re.search(speeds, printed)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.timeout(150)
def test_the_command_without_rich_and_matplotlib(tmp_path: Path) -> None:
    script = f"""
import runpy, sys
sys.modules["rich.progress"] = sys.modules["matplotlib.figure"] = None
runpy.run_path({str(EXAMPLES / "tiny_llama.py")!r}, run_name="__main__")
"""
    printed = run("-c", script, "--steps", "1", "--write", "5", "--out", str(tmp_path))
    assert re.search(r"step +1 +loss", printed)
    assert "loss curve       not drawn" in printed
