"""Train a small language model on bytes, in NumPy, and let it write with and without a cache.

python examples/tiny_llama.py --seed 0 --steps 900 --out llama-out

The model is a Llama in miniature: RMS norm, attention with grouped heads, rotary positions and a
window, SwiGLU. The text is the reference of the language that ships with Python.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics

import numpy as np

import multihead as mh

sys.path.append(str(Path(__file__).resolve().parent / "digits"))
from adam import Adam, warmup_cosine
from nn import Array, Layer, cross_entropy

WIDTH, HEADS, KEY_HEADS, BLOCKS, HIDDEN = 128, 8, 2, 3, 320
LENGTH, WINDOW, BATCH = 256, 128, 8
STEPS, PEAK_RATE, LARGEST_NORM = 900, 4e-3, 1.0
BYTES = 256
PROMPT = "The following"

Caches = list[mh.KVCache]
Report = Callable[[int, float], None]


class Matrix(Layer):
    """y = x W^T, with W (fan_out, fan_in)."""

    def __init__(self, fan_in: int, fan_out: int, rng: np.random.Generator, dtype: str) -> None:
        self.weight = rng.normal(0, fan_in**-0.5, (fan_out, fan_in)).astype(dtype)
        super().__init__(weight=self.weight)

    def __call__(self, x: Array) -> Array:
        """Return x W^T."""
        self._x = x
        y: Array = x @ self.weight.T
        return y

    def backward(self, d_y: Array) -> Array:
        """Add to the gradient of W; return d_y W."""
        rows, d_rows = self._x.reshape(-1, self._x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
        self.grads["weight"] += d_rows.T @ rows
        d_x: Array = d_y @ self.weight
        return d_x


class RMSNorm(Layer):
    """x over its root mean square, then a learned scale (Zhang and Sennrich, 2019)."""

    def __init__(self, features: int, dtype: str, eps: float = 1e-6) -> None:
        self.weight, self.eps = np.ones(features, dtype), eps
        super().__init__(weight=self.weight)

    def __call__(self, x: Array) -> Array:
        """Return the normalised and scaled x."""
        self._inverse = 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.eps)
        self._normal = x * self._inverse
        y: Array = self._normal * self.weight
        return y

    def backward(self, d_y: Array) -> Array:
        """Take from d_x what would only move the root mean square."""
        self.grads["weight"] += (d_y * self._normal).reshape(-1, d_y.shape[-1]).sum(0)
        d_normal = d_y * self.weight
        along = (d_normal * self._normal).mean(-1, keepdims=True)
        d_x: Array = (d_normal - self._normal * along) * self._inverse
        return d_x


class Embedding(Layer):
    """A learned row for each byte."""

    def __init__(self, features: int, rng: np.random.Generator, dtype: str) -> None:
        self.weight = rng.normal(0, 0.5, (BYTES, features)).astype(dtype)
        super().__init__(weight=self.weight)

    def __call__(self, text: Array) -> Array:
        """Return (N, L, features) for bytes (N, L)."""
        self._text = text
        rows: Array = self.weight[text]
        return rows

    def backward(self, d_y: Array) -> None:
        """Add to the gradients of the rows that were taken."""
        taken = np.eye(BYTES, dtype=d_y.dtype)[self._text.ravel()]
        self.grads["weight"] += taken.T @ d_y.reshape(-1, d_y.shape[-1])


class SwiGLU:
    """down(silu(gate(x)) * up(x)), of Shazeer (2020)."""

    def __init__(self, features: int, hidden: int, rng: np.random.Generator, dtype: str) -> None:
        self.gate, self.up = (Matrix(features, hidden, rng, dtype) for _ in range(2))
        self.down = Matrix(hidden, features, rng, dtype)

    def __call__(self, x: Array) -> Array:
        """Return what goes to the residual stream."""
        self._gate, self._up = self.gate(x), self.up(x)
        self._sigmoid = 1 / (1 + np.exp(-self._gate))
        return self.down(self._gate * self._sigmoid * self._up)

    def backward(self, d_y: Array) -> Array:
        """Return the gradient of x."""
        d_product = self.down.backward(d_y)
        d_up = d_product * self._gate * self._sigmoid
        slope = self._sigmoid * (1 + self._gate * (1 - self._sigmoid))
        return self.gate.backward(d_product * self._up * slope) + self.up.backward(d_up)


class Block:
    """Attention, then SwiGLU, each on a normalised stream to which it adds."""

    def __init__(self, rng: np.random.Generator, dtype: str) -> None:
        self.before_attention, self.before_mlp = (RMSNorm(WIDTH, dtype) for _ in range(2))
        self.attention = mh.MultiheadAttention(
            WIDTH,
            HEADS,
            bias=False,
            num_kv_heads=KEY_HEADS,
            window=(WINDOW - 1, 0),
            rope=mh.Rope(),
            batch_first=True,
            dtype=dtype,
            seed=rng,
        )
        self.mlp = SwiGLU(WIDTH, HIDDEN, rng, dtype)

    def __call__(self, x: Array, cache: mh.KVCache | None = None) -> Array:
        """Return the stream (N, L, E) after both."""
        y = self.before_attention(x)
        attended, _ = self.attention(y, y, y, need_weights=False, is_causal=True, kv_cache=cache)
        x = x + attended
        x = x + self.mlp(self.before_mlp(x))
        return x

    def backward(self, d_x: Array) -> Array:
        """Return the gradient of the stream before both."""
        d_x = d_x + self.before_mlp.backward(self.mlp.backward(d_x))
        d_y = np.empty_like(d_x)
        self.attention.backward(d_x, out=(d_y, d_y, d_y))
        return d_x + self.before_attention.backward(d_y)


class TinyLlama:
    """Scores of the next byte for each byte of a text."""

    def __init__(self, seed: int, dtype: str = "float32") -> None:
        rng = np.random.default_rng(seed)
        self.embedding = Embedding(WIDTH, rng, dtype)
        self.blocks = [Block(rng, dtype) for _ in range(BLOCKS)]
        self.norm, self.head = RMSNorm(WIDTH, dtype), Matrix(WIDTH, BYTES, rng, dtype)

    def layers(self) -> Iterator[tuple[str, Layer | mh.MultiheadAttention]]:
        """Yield everything that has parameters, and its name."""
        yield "embedding", self.embedding
        for i, block in enumerate(self.blocks):
            yield f"{i}.before_attention", block.before_attention
            yield f"{i}.attention", block.attention
            yield f"{i}.before_mlp", block.before_mlp
            for name in ("gate", "up", "down"):
                yield f"{i}.{name}", getattr(block.mlp, name)
        yield "norm", self.norm
        yield "head", self.head

    def parameters(self) -> dict[str, Array]:
        """Return the parameters themselves, by name."""
        return {f"{n}.{k}": x for n, layer in self.layers() for k, x in layer.parameters().items()}

    def grads(self) -> dict[str, Array]:
        """Return the gradients by the same names."""
        return {f"{n}.{k}": x for n, layer in self.layers() for k, x in layer.grads.items()}

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for _, layer in self.layers():
            layer.zero_grad()

    def train(self, mode: bool = True) -> None:
        """Switch between training and evaluation."""
        for _, layer in self.layers():
            layer.train(mode)

    def new_caches(self, batch: int) -> Caches:
        """Return a cache for each block: twice the window, whatever the length of the text."""
        return [block.attention.new_kv_cache(batch, 2 * WINDOW) for block in self.blocks]

    def __call__(self, text: Array, caches: Caches | None = None) -> Array:
        """Return scores (N, L, 256) for bytes (N, L), which follow those in the caches."""
        x = self.embedding(text)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i])
        return self.head(self.norm(x))

    def backward(self, d_scores: Array) -> None:
        """Add to all gradients."""
        d_x = self.norm.backward(self.head.backward(d_scores))
        for block in reversed(self.blocks):
            d_x = block.backward(d_x)
        self.embedding.backward(d_x)


def load_text() -> tuple[Array, Array]:
    """Return the bytes to train on, and the last tenth, which is held out."""
    whole = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    text = np.frombuffer(whole.encode(), np.uint8)
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def batches(text: Array, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Yield random pieces (N, L) and the bytes that follow each of theirs, forever."""
    while True:
        starts = rng.integers(0, len(text) - LENGTH, BATCH)
        pieces = text[starts[:, None] + np.arange(LENGTH + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


def loss_of(model: TinyLlama, text: Array, following: Array) -> tuple[float, Array]:
    """Return the mean cross-entropy of a batch in nats a byte, and the gradient of the scores."""
    scores = model(text)
    loss, d_scores = cross_entropy(scores.reshape(-1, BYTES), following.ravel())
    return loss, d_scores.reshape(scores.shape)


def held_out_loss(model: TinyLlama, text: Array) -> float:
    """Return the mean loss over whole pieces of a text."""
    model.train(False)
    pieces = text[: (len(text) - 1) // LENGTH * LENGTH].reshape(-1, LENGTH)
    following = text[1 : pieces.size + 1].reshape(-1, LENGTH)
    total = 0.0
    for first in range(0, len(pieces), BATCH):
        some = slice(first, first + BATCH)
        total += loss_of(model, pieces[some], following[some])[0] * len(pieces[some])
    return total / len(pieces)


def train(model: TinyLlama, text: Array, seed: int, steps: int, report: Report) -> None:
    """Train a model; ``report(step, loss)`` is called after each step."""
    adam, drawn = Adam(model.parameters()), batches(text, np.random.default_rng([seed, 1]))
    model.train()
    for step in range(steps):
        loss, d_scores = loss_of(model, *next(drawn))
        model.zero_grad()
        model.backward(d_scores)
        grads = model.grads()
        norm = np.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        if norm > LARGEST_NORM:
            for grad in grads.values():
                grad *= LARGEST_NORM / norm
        adam.step(grads, warmup_cosine(step, steps, PEAK_RATE))
        report(step, loss)


def sample(
    model: TinyLlama, prompt: bytes, count: int, seed: int, cached: bool = True
) -> Iterator[int]:
    """Yield the bytes that a model writes after a prompt, each drawn from the likely ones."""
    model.train(False)
    rng = np.random.default_rng(seed)
    text = np.frombuffer(prompt, np.uint8)[None]
    caches = model.new_caches(1) if cached else None
    given = text
    for _ in range(count):
        scores = model(given, caches)[0, -1].astype(np.float64) / 0.8
        likely = np.argsort(scores)[-40:]
        p = np.exp(scores[likely] - scores[likely].max())
        byte = int(rng.choice(likely, p=p / p.sum()))
        yield byte
        fresh = np.array([[byte]], np.uint8)
        text = np.concatenate([text, fresh], 1)
        given = fresh if cached else text


def rate(model: TinyLlama, text: Array, cached: bool, count: int) -> float:
    """Return how many tokens a second a model writes after a text."""
    written = sample(model, text.tobytes(), count + 1, 0, cached)
    next(written)  # reads the text
    started = time.perf_counter()
    for _ in written:
        pass
    return count / (time.perf_counter() - started)


def draw(losses: list[float], held_out: float, path: Path) -> None:
    """Draw the loss of each step, and the last one on the held-out text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, linewidth=0.7, label="training")
    axes.axhline(held_out, color="black", linestyle="--", label=f"held out: {held_out:.3f}")
    axes.set(xlabel="step", ylabel="nats a byte", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=160)


def main() -> None:
    """Train, draw, write."""
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(description="Train a small language model on bytes.")
    parser.add_argument("--seed", type=int, default=0, help="of the model, the batches, the text")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--write", type=int, default=400, help="how many bytes to write")
    parser.add_argument("--context", type=int, default=1024, help="where speed is measured")
    parser.add_argument("--out", type=Path, default=Path("llama-out"), help="directory to fill")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    # The products outside attention are too small to gain from the threads of a BLAS.
    with threadpool_limits(1, user_api="blas"):
        train_and_write(options)


def train_and_write(options: argparse.Namespace) -> None:
    """Do what the command is asked for."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    text, held_out = load_text()
    model, losses = TinyLlama(options.seed), []
    size = sum(x.size for x in model.parameters().values())
    print(f"{len(text)} bytes to train on, {len(held_out)} held out; {size} parameters")
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}")) as progress:
        task = progress.add_task("", total=options.steps, loss=float("nan"))

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            progress.update(task, advance=1, loss=loss)

        train(model, text, options.seed, options.steps, report)
    seconds = time.perf_counter() - started
    reached = held_out_loss(model, held_out)
    print(f"held-out loss    {reached:.3f} nats a byte after {seconds:.0f} s of training")
    picture = options.out / "loss.png"
    draw(losses, reached, picture)
    print(f"loss curve       {picture}\n")

    prompt = PROMPT.encode()
    written = bytes(sample(model, prompt, options.write, options.seed))
    print((prompt + written).decode(errors="replace"), "\n")
    fast = rate(model, held_out[: options.context], True, 100)
    slow = rate(model, held_out[: options.context], False, 10)
    print(f"after {options.context} tokens: {fast:.0f} a second with the cache, {slow:.1f} without")


if __name__ == "__main__":
    main()
