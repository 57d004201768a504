"""Targets that need a fresh process: peak memory, and another instruction set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.cases import Shape
from benchmarks.targets.grid import LONG
from benchmarks.targets.target import Reached, Run, Target
from multihead import _native

TIMEOUT = 600
ROOT = Path(__file__).resolve().parents[2]

MEMORY = Shape(1, 8192, 512, 8)
WEIGHTS = Shape(1, 2048, 1024, 16)

# prints how far the peak of a training step rises above what is held before it
STEP = """
import numpy as np
import multihead as mh
from benchmarks.problem import numpy_dtype

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

size = ({shape.batch}, {shape.length}, {shape.embed_dim})
layer = mh.MultiheadAttention(
    {shape.embed_dim}, {shape.num_heads}, dropout={dropout}, batch_first=True,
    dtype="{dtype}", seed=0,
)
dtype = numpy_dtype("{dtype}")
small = np.ones((1, 64, size[2]), dtype)
layer(small, small, small, need_weights=False)
layer.backward(small)  # threads and gradients exist
rng = np.random.default_rng(0)
x, d_out = (rng.standard_normal(size, np.float32).astype(dtype) for _ in range(2))
out = tuple(np.ones(size, dtype) for _ in range(3))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is what is held now
before = status("VmRSS")
result = layer(x, x, x, need_weights={weights})
layer.backward(d_out, out=out)
print(status("VmHWM") - before)
"""


def fresh(arguments: list[str], **environment: str) -> str:
    """Run this interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    if done.returncode != 0:
        raise RuntimeError(f"a fresh process failed: {done.stderr.strip()}")
    return done.stdout


def peak(
    threads: int, shape: Shape, dropout: float = 0.0, weights: bool = False, dtype: str = "float32"
) -> int:
    """Return the peak memory of a training step beyond what is held before it, in bytes."""
    code = STEP.format(shape=shape, dropout=dropout, weights=weights, dtype=dtype)
    return int(fresh(["-c", code], MULTIHEAD_NUM_THREADS=str(threads)))


def _memory(run: Run) -> Reached:
    if not sys.platform.startswith("linux"):
        return Reached(None, "it reads /proc")
    above = peak(run.threads, MEMORY, dropout=0.1)
    tokens = 4 * MEMORY.batch * MEMORY.length * MEMORY.embed_dim
    return Reached(above / tokens, f"{above / 1e6:.0f} MB")


def _weights_memory(run: Run) -> Reached:
    if not sys.platform.startswith("linux"):
        return Reached(None, "it reads /proc")
    without, given = (peak(run.threads, WEIGHTS, weights=weights) for weights in (False, True))
    matrix = 4 * WEIGHTS.batch * WEIGHTS.length**2
    return Reached((given - without) / matrix, f"{given / 1e6:.0f} against {without / 1e6:.0f} MB")


def _avx2(shape: Shape) -> Target:
    share = f"share-{shape.length}"

    def measure(run: Run) -> Reached:
        if "avx2" not in _native.available_isas():
            return Reached(None, "this processor has no AVX2")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "found.json"
            arguments = ["-m", "benchmarks", "--targets", share, "--json", str(file)]
            quick = ["--quick"] if run.quick else []
            fresh([*arguments, *quick, "--threads", str(run.threads)], MULTIHEAD_ISA="avx2")
            found = json.loads(file.read_text())
        if found["machine"]["isa"] != "avx2":
            raise RuntimeError(f"MULTIHEAD_ISA=avx2 ran {found['machine']['isa']}")
        (result,) = found["targets"]
        return Reached(result["value"], result["note"], result["granted_processor_time"])

    return Target(
        f"avx2-{shape.length}",
        f"train at {shape} with MULTIHEAD_ISA=avx2: share of its own FMA limit",
        0.8,
        measure,
        form="{:.1%}",
    )


TARGETS = (
    Target(
        "memory",
        f"train + dropout 0.1 at {MEMORY} with out=: peak extra memory / (N L E * 4 bytes)",
        12.0,
        _memory,
        at_most=True,
        quick=True,
    ),
    Target(
        "weights-memory",
        f"train + averaged weights at {WEIGHTS}: extra memory / one (N, L, S) array",
        1.05,
        _weights_memory,
        at_most=True,
        quick=True,
    ),
    *(_avx2(shape) for shape in LONG),
)
