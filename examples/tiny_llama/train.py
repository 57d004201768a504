"""Train a small language model on bytes, in NumPy, and let it write with and without a cache.

python examples/tiny_llama.py --seed 0 --steps 900 --out llama-out
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))  # of adam and nn

from llama import Sizes, TinyLlama
from nn import Array
from progress import progress
from sampling import Choice, sample, speed
from text import load_text, random_batches, whole_batches
from training import held_out_loss, train

PROMPT = b"The following"

Curve = list[tuple[int, float]]  # steps and losses


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a small language model on bytes.")
    parser.add_argument("--seed", type=int, default=0, help="of the model, the batches, the text")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=8, help="pieces of text in a step")
    parser.add_argument("--length", type=int, default=256, help="bytes of a piece")
    parser.add_argument("--write", type=int, default=400, help="how many bytes to write")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=40, help="draw from so many, 1: greedy")
    parser.add_argument("--context", type=int, default=1024, help="where speed is measured")
    parser.add_argument("--out", type=Path, default=Path("llama-out"), help="directory to fill")
    parser.add_argument("--quick", action="store_true", help="a few small steps, to see it run")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps: expected at least 1, got {options.steps}")
    if options.quick:
        options.steps, options.batch, options.length = min(options.steps, 4), 4, 64
        options.context, options.write = min(options.context, 256), min(options.write, 40)
    return options


def fit(
    model: TinyLlama, text: Array, held_out: Array, options: argparse.Namespace
) -> tuple[Curve, Curve]:
    """Train a model; return its losses on the batches and, now and then, on the held-out text."""
    batches = random_batches(text, options.batch, options.length, options.seed)
    learned: Curve = []
    peeked: Curve = []
    often = max(1, options.steps // 10)
    with progress(options.steps) as (advance, say):

        def report(step: int, loss: float) -> None:
            learned.append((step + 1, loss))
            advance(f"loss {loss:.3f}")
            if (step + 1) % often == 0 or step + 1 == options.steps:
                recent = float(np.mean([loss for _, loss in learned[-often:]]))
                whole = whole_batches(held_out, options.batch, options.length)
                peeked.append((step + 1, held_out_loss(model, whole)))
                say(f"step {step + 1:4}   loss {recent:.3f}   held-out {peeked[-1][1]:.3f}")

        train(model, batches, options.steps, report)
    return learned, peeked


def draw_losses(learned: Curve, peeked: Curve, path: Path) -> None:
    """Draw the loss of each step, and the one on the held-out text."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("loss curve       not drawn: it takes matplotlib")
        return
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*learned, strict=True), linewidth=0.7, label="batches")
    axes.plot(*zip(*peeked, strict=True), marker="o", markersize=3, label="held out")
    axes.set(xlabel="step", ylabel="nats a byte", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=160)
    print(f"loss curve       {path}")


def compare_speeds(model: TinyLlama, context: Array) -> None:
    """Print how fast a model writes after a text, with caches and without."""
    cached = speed(model, context.tobytes(), 200, cached=True)
    whole = speed(model, context.tobytes(), 20, cached=False)
    print(f"after {len(context)} bytes: {cached:.0f} tokens a second with the cache, ", end="")
    print(f"{whole:.1f} without: {cached / whole:.0f} times as many")


def run(options: argparse.Namespace) -> None:
    """Train, draw, write."""
    options.out.mkdir(parents=True, exist_ok=True)
    text, held_out = load_text()
    if options.quick:
        held_out = held_out[:4096]
    model = TinyLlama(Sizes(), options.seed)
    size = sum(x.size for x in model.parameters().values())
    print(f"{len(text)} bytes to train on, {len(held_out)} held out; {size} parameters")

    started = time.perf_counter()
    learned, peeked = fit(model, text, held_out, options)
    seconds = time.perf_counter() - started
    loss = peeked[-1][1]
    print(f"held-out loss    {loss:.3f} nats or {loss / math.log(2):.3f} bits a byte ", end="")
    print(f"after {seconds:.0f} s of training")
    draw_losses(learned, peeked, options.out / "loss.png")

    choice = Choice(options.temperature, options.top_k, options.seed)
    written = bytes(sample(model, PROMPT, options.write, choice))
    print("", (PROMPT + written).decode(errors="replace"), "", sep="\n")
    compare_speeds(model, held_out[: options.context])


if __name__ == "__main__":
    # A BLAS's threads and attention's would wait for each other's cores (see README.md).
    with threadpool_limits(1, user_api="blas"):
        run(parse())
