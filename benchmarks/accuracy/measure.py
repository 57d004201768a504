"""Measure cases against float64. Imports PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.accuracy.cases import TENSORS, Case, cases
from benchmarks.accuracy.errors import Error, deviation, parts
from benchmarks.accuracy.problems import Problem, computed
from benchmarks.contenders import OURS, TORCH
from benchmarks.machine import describe, instructions
from benchmarks.measure import DisagreementError

CONTENDERS = (OURS, TORCH)
# How far the two references, our float64 and PyTorch's, may be apart. Of the largest, most rows
# are one weight of 1, and gradients of q and k what rounding leaves of nothing.
REFERENCES_APART = {1: 1e-11, 10: 1e-11, 100: 1e-11, 1000: 1e-2}


def measure_case(case: Case, draws: int) -> dict[str, Any]:
    """Measure the errors of one case, ready for ``json.dump``.

    Raises
    ------
    benchmarks.measure.DisagreementError
        If the two references differ.
    """
    errors = {
        who: {name: Error(parts(draws)) for name in TENSORS[case.function]} for who in CONTENDERS
    }
    apart = 0.0
    for seed in range(draws):
        problem = Problem.of(case, seed)
        exact = computed(problem.exact(), OURS)
        if seed == 0:
            apart = _apart(case, exact, computed(problem.exact(), TORCH))
        for who, of_tensor in errors.items():
            found = computed(problem, who)
            for name, error in of_tensor.items():
                error.add(found[name], exact[name])
    return {
        "function": case.function,
        "dtype": case.dtype,
        "length": case.length,
        "logits": case.logits,
        "draws": draws,
        "references_apart": apart,
        "tensors": {
            name: {
                "entries": errors[OURS][name].entries,
                "deviation": deviation(errors[OURS][name], errors[TORCH][name]),
                **{who: errors[who][name].document() for who in CONTENDERS},
            }
            for name in TENSORS[case.function]
        },
    }


def measure(draws: Mapping[int, int], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure every case of some lengths.

    Parameters
    ----------
    draws : mapping of int to int
        How often each length is drawn.
    tell : callable
        Called with what was measured of each case, as it comes.

    Returns
    -------
    dict
        Machine and cases, ready for ``json.dump``.
    """
    machine = describe(torch.get_num_threads())
    machine["instructions"] = instructions()
    found = []
    for case in cases(draws):
        found.append(measure_case(case, draws[case.length]))
        tell(found[-1])
    return {"machine": machine, "cases": found}


def _apart(case: Case, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Return the largest relative difference of the two references."""
    found = {name: Error(1) for name in ours}
    for name, error in found.items():
        error.add(theirs[name], ours[name])
    name = max(found, key=lambda name: found[name].relative)
    # written so that NaN fails
    if not found[name].relative <= REFERENCES_APART[case.logits]:
        raise DisagreementError(
            f"{case}: in float64, ours and PyTorch's differ by {found[name].relative:.1e} in {name}"
        )
    return found[name].relative
