"""Target of the JAX face: peak memory of a training step of attention."""

from __future__ import annotations

import sys

from benchmarks.targets.jax_attention import with_jax
from benchmarks.targets.processes import fresh
from benchmarks.targets.target import Reached, Run, Target

LENGTH, JAX_LENGTH, HEADS = 16384, 2048, 4
MIB = 2**20

# prints the peak of a process that imports JAX and trains once
STEP = """
import jax, jax.nn, multihead.jax
from benchmarks.jax_calls import Jitted, normal, training_step

attend = {module}.dot_product_attention
Jitted(training_step(attend), *(normal(i, 1, {length}, {heads}, 64) for i in range(4)))()
with open("/proc/self/status") as file:
    print(next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")))
"""


def peak(module: str, length: int, threads: int) -> int:
    """Return the peak memory of a process with a training step, in bytes.

    Parameters
    ----------
    module : str
        Whose attention: ``"multihead.jax"`` or ``"jax.nn"``.
    length : int
    threads : int
        The engine's.
    """
    code = STEP.format(module=module, length=length, heads=HEADS)
    return int(fresh(["-c", code], MULTIHEAD_NUM_THREADS=str(threads)))


@with_jax
def _memory(run: Run) -> Reached:
    if not sys.platform.startswith("linux"):
        return Reached(None, "it reads /proc")
    ours = peak("multihead.jax", LENGTH, run.threads)
    theirs = peak("jax.nn", JAX_LENGTH, run.threads)
    return Reached(ours / MIB, f"JAX's at L = {JAX_LENGTH}: {theirs / MIB:.0f} MiB")


TARGETS = (
    Target(
        "jax-memory",
        f"peak memory of a process that trains attention at L = {LENGTH}, H = {HEADS}, D = 64",
        1024.0,
        _memory,
        at_most=True,
        form="{:.0f} MiB",
    ),
)
