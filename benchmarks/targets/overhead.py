"""Target of the torch face: what a call costs when there is next to nothing to compute."""

from __future__ import annotations

import copy
from typing import Any

from benchmarks.contenders import OURS, TORCH
from benchmarks.measure import Timing, compare
from benchmarks.suite import TOLERANCE
from benchmarks.targets.target import Reached, Run, Target, with_torch

CALLS = 100
E, H, N, L = 8, 2, 1, 2


class _Calls:
    """A layer in eval, called again and again."""

    def __init__(self, layer: Any, x: Any) -> None:
        import torch

        self.torch: Any = torch
        self.layer, self.x = layer.eval(), x
        self.out: Any = None

    def __call__(self) -> None:
        with self.torch.no_grad():
            for _ in range(CALLS):
                self.out, _ = self.layer(self.x, self.x, self.x, need_weights=False)


@with_torch
def _overhead(run: Run) -> Reached:
    import torch

    from multihead.torch import accelerate

    torch.manual_seed(0)
    x = torch.randn(N, L, E)
    theirs: Any = torch.nn.MultiheadAttention(E, H, batch_first=True)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    steps = {OURS: _Calls(ours, x), TORCH: _Calls(theirs, x)}
    for step in steps.values():
        step()
    compare({"out": steps[OURS].out.numpy()}, {"out": steps[TORCH].out.numpy()}, TOLERANCE)
    found = run.race(steps)
    seconds = {name: Timing(tuple(each / CALLS for each in times)) for name, times in found.items()}
    ours_us, theirs_us = (1e6 * seconds[name].median for name in (OURS, TORCH))
    return Reached(ours_us, f"torch {theirs_us:.1f} us", seconds=seconds)


TARGETS = (
    Target(
        "torch-overhead",
        f"a whole call at ({N}, {L}, {E}, {H}), eval, no gradients, no weights",
        40.0,
        _overhead,
        at_most=True,
        form="{:.1f} us",
        quick=True,
    ),
)
