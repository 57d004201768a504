"""Targets of the torch face: whole models, and what attention takes of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

from benchmarks.contenders import OURS, TORCH, Step
from benchmarks.measure import Timing
from benchmarks.suite import check
from benchmarks.targets.target import Reached, Run, Target, paired, with_torch
from benchmarks.workloads import WORKLOADS, Workload

# of a whole model, and of attention alone in short and in long sequences
NO_SLOWER = 0.95
ATTENTION, ATTENTION_LONG, LONG = 1.3, 2.0, 512


def raced(
    run: Run, make: Callable[[Workload], Mapping[str, Step]], work: Workload, unit: int = 1
) -> Reached:
    """Check the twins' steps without dropout, race them with it, and tell torch / ours.

    Parameters
    ----------
    run : Run
    make : callable
        Makes the steps of a workload.
    work : Workload
    unit : int
        The time told is that of so many steps.
    """
    # the report imports the targets
    from benchmarks.report import duration
    from benchmarks.twins import agreed

    agreed(make(work.exact()), work)
    steps = make(work)
    found = run.race(steps)
    check(steps, work, exact=False)
    seconds = {name: Timing(tuple(unit * each for each in times)) for name, times in found.items()}
    return Reached(
        median(paired(found[TORCH], found[OURS])),
        f"torch {duration(seconds[TORCH].median)}, ours {duration(seconds[OURS].median)}",
        seconds=seconds,
    )


def _whole(work: Workload, training: bool) -> Target:
    @with_torch
    def measure(run: Run) -> Reached:
        from benchmarks.twins import Inference, Training, both

        kind = Training if training else Inference
        return raced(run, partial(both, kind), work)

    word = "train" if training else "eval"
    step = f"a step of AdamW, dropout {work.dropout}" if training else "no gradients"
    return Target(
        f"torch-{work.model}-{work.length}-{word}",
        f"{word}, {work}, {step}: torch / ours",
        NO_SLOWER,
        measure,
        quick=work.length <= 128,
    )


def _attention(work: Workload) -> Target:
    @with_torch
    def measure(run: Run) -> Reached:
        from benchmarks.calls import attention_alone

        return raced(run, attention_alone, work, unit=work.layers)

    return Target(
        f"torch-{work.model}-{work.length}-attention",
        f"attention alone in that step, all layers, dropout {work.dropout}: torch / ours",
        ATTENTION_LONG if work.length >= LONG else ATTENTION,
        measure,
        quick=work.length <= 128,
    )


TARGETS = tuple(
    target
    for work in WORKLOADS
    for target in (_whole(work, False), _whole(work, True), _attention(work))
)
