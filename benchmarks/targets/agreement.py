"""Targets of the torch face: how far an accelerated model's numbers are from PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.contenders import OURS, TORCH, Step
from benchmarks.targets.target import Reached, Run, Target, with_torch
from benchmarks.workloads import SMALL, Workload

STEPS = 50


def farthest(steps: Mapping[str, Step]) -> Reached:
    """Return the largest difference of the results, each relative to its own largest entry."""
    ours, theirs = steps[OURS].results(), steps[TORCH].results()
    found = {}
    for name, a in ours.items():
        largest = max(float(np.abs(a).max()), float(np.abs(theirs[name]).max()))
        difference = float(np.abs(a - theirs[name]).max())
        found[name] = difference / largest if difference else 0.0
    name = max(found, key=found.__getitem__)
    return Reached(found[name], "" if len(found) == 1 else f"in {name}")


def _outputs(work: Workload) -> Target:
    @with_torch
    def measure(run: Run) -> Reached:
        from benchmarks.twins import Inference, agreed, both

        return farthest(agreed(both(Inference, work), work))

    what = f"outputs in eval, {work}: largest difference from torch's / largest entry"
    return _target(work, "outputs", what, 1e-5, measure)


def _gradients(work: Workload) -> Target:
    @with_torch
    def measure(run: Run) -> Reached:
        from benchmarks.twins import Training, agreed, both

        return farthest(agreed(both(Training, work.exact()), work))

    what = f"gradients, {work}, gelu, no dropout: the same, worst of all parameters"
    return _target(work, "gradients", what, 1e-4, measure)


def _losses(work: Workload) -> Target:
    @with_torch
    def measure(run: Run) -> Reached:
        from benchmarks.twins import losses

        found = losses(work.exact(), STEPS)
        ours, theirs = (np.array(found[name]) for name in (OURS, TORCH))
        apart = np.abs(ours - theirs) / np.abs(theirs)
        return Reached(float(apart.max()), f"loss {theirs[0]:.4f} to {theirs[-1]:.4f}")

    what = f"losses, {STEPS} steps, {work}, gelu, no dropout: largest relative difference"
    return _target(work, "losses", what, 1e-3, measure, quick=False)


def _target(
    work: Workload,
    word: str,
    what: str,
    bound: float,
    measure: Callable[[Run], Reached],
    quick: bool = True,
) -> Target:
    return Target(
        f"torch-{work.model}-{word}",
        what,
        bound,
        measure,
        at_most=True,
        form="{:.1e}",
        quick=quick,
    )


TARGETS = tuple(made(work) for work in SMALL for made in (_outputs, _gradients, _losses))
