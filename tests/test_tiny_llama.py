"""The example of a language model: its gradients, PyTorch's twin of it, its cache, its command."""

from __future__ import annotations

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
sys.path.insert(0, str(EXAMPLES))
import tiny_llama  # noqa: E402  # beside the tests


@pytest.fixture(autouse=True)
def one_thread_of_blas() -> Iterator[None]:
    """The products are too small for more, as the command says too."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model, of a size for differences."""
    sizes = {"WIDTH": 8, "HEADS": 4, "KEY_HEADS": 2, "HIDDEN": 5, "BLOCKS": 2}
    for name, size in (sizes | {"WINDOW": 3, "LENGTH": 6, "BATCH": 2, "BYTES": 7}).items():
        monkeypatch.setattr(tiny_llama, name, size)


@pytest.mark.usefixtures("small")
def test_gradients_are_differences(rng: np.random.Generator) -> None:
    model = tiny_llama.TinyLlama(0, "float64")
    model.train()
    text, following = rng.integers(0, 7, (2, 2, 6))
    _, d_scores = tiny_llama.loss_of(model, text, following)
    model.zero_grad()
    model.backward(d_scores)
    grads = {name: grad.copy() for name, grad in model.grads().items()}
    for name, parameter in model.parameters().items():
        numeric = central_difference(
            lambda: tiny_llama.loss_of(model, text, following)[0], parameter
        )
        assert_close(grads[name], numeric, CENTRAL_DIFFERENCES, name, scale=1e-2)


class Twin:
    """The model in PyTorch's own operations, from the same parameters."""

    def __init__(self, model: Any) -> None:
        given = model.parameters()
        self.p = {name: torch.from_numpy(x.copy()).requires_grad_() for name, x in given.items()}

    def attention(self, i: int, x: torch.Tensor) -> torch.Tensor:
        heads, key_heads = tiny_llama.HEADS, tiny_llama.KEY_HEADS
        n, length, width = x.shape
        dim = width // heads

        def by_head(name: str, count: int) -> torch.Tensor:
            weight = self.p[f"{i}.attention.{name}_proj_weight"]
            return (x @ weight.T).view(n, length, count, dim).transpose(1, 2)

        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, dim, 2) / dim)).to(
            x.dtype
        )
        cosine, sine = angles.cos().tile(2), angles.sin().tile(2)

        def turned(y: torch.Tensor) -> torch.Tensor:
            a, b = y.chunk(2, -1)
            return y * cosine + torch.cat([-b, a], -1) * sine

        q, k = turned(by_head("q", heads)), turned(by_head("k", key_heads))
        k, v = (y.repeat_interleave(heads // key_heads, 1) for y in (k, by_head("v", key_heads)))
        steps = torch.arange(length)[:, None] - torch.arange(length)
        seen = (steps >= 0) & (steps < tiny_llama.WINDOW)
        out = scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        return out @ self.p[f"{i}.attention.out_proj.weight"].T

    def scores(self, text: torch.Tensor) -> torch.Tensor:
        p = self.p

        def normal(name: str, x: torch.Tensor) -> torch.Tensor:
            return rms_norm(x, x.shape[-1:], p[f"{name}.weight"], 1e-6)

        x = p["embedding.weight"][text]
        for i in range(tiny_llama.BLOCKS):
            x = x + self.attention(i, normal(f"{i}.before_attention", x))
            y = normal(f"{i}.before_mlp", x)
            product = silu(y @ p[f"{i}.gate.weight"].T) * (y @ p[f"{i}.up.weight"].T)
            x = x + product @ p[f"{i}.down.weight"].T
        return normal("norm", x) @ p["head.weight"].T

    def loss(self, text: np.ndarray, following: np.ndarray) -> torch.Tensor:
        given, wanted = (torch.from_numpy(x.astype(np.int64)) for x in (text, following))
        return cross_entropy(self.scores(given).flatten(0, 1), wanted.flatten())


def test_it_learns_what_pytorchs_operations_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_llama, "LENGTH", 96)
    monkeypatch.setattr(tiny_llama, "BATCH", 8)
    monkeypatch.setattr(tiny_llama, "WINDOW", 48)
    steps, (text, held_out) = 60, tiny_llama.load_text()
    model = tiny_llama.TinyLlama(3)
    twin = Twin(model)
    tiny_llama.train(model, text, 3, steps, lambda step, loss: None)

    adam = tiny_llama.Adam({name: x.detach().numpy() for name, x in twin.p.items()})
    drawn = tiny_llama.batches(text, np.random.default_rng([3, 1]))
    for step in range(steps):
        grads = torch.autograd.grad(twin.loss(*next(drawn)), list(twin.p.values()))
        norm = torch.stack([g.norm() for g in grads]).norm()
        scale = torch.clamp(tiny_llama.LARGEST_NORM / norm, max=1.0)
        found = {name: (g * scale).numpy() for name, g in zip(twin.p, grads, strict=True)}
        adam.step(found, tiny_llama.warmup_cosine(step, steps, tiny_llama.PEAK_RATE))
    part = held_out[: 40 * 96 + 1]
    ours = tiny_llama.held_out_loss(model, part)
    with torch.no_grad():
        pieces, following = part[:-1].reshape(-1, 96), part[1:].reshape(-1, 96)
        theirs = float(twin.loss(pieces, following))
    assert ours == pytest.approx(theirs, rel=0.03)
    assert ours < 3.2  # of 5.5 untrained


def test_the_cache_changes_nothing_but_the_time() -> None:
    model = tiny_llama.TinyLlama(1)
    prompt = tiny_llama.load_text()[1][:300].tobytes()
    cached, whole = (
        list(tiny_llama.sample(model, prompt, 20, 4, cached)) for cached in (True, False)
    )
    assert cached == whole
    text = tiny_llama.load_text()[1][:700]
    fast, slow = (tiny_llama.rate(model, text, cached, 5) for cached in (True, False))
    assert fast > 2 * slow


@pytest.mark.timeout(240)
def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "tiny_llama.py"), "--steps", "4", "--write", "30"]
    command += ["--context", "200", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert re.search(r"held-out loss +\d\.\d{3} nats a byte", done.stdout)
    assert "The following" in done.stdout
    assert re.search(r"after 200 tokens: \d+ a second with the cache, [\d.]+ without", done.stdout)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_is_split_once() -> None:
    text, held_out = tiny_llama.load_text()
    assert len(text) > 8 * len(held_out) > 100_000
