"""Descriptors of half precision: the engine reads, writes and adds where the arrays lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnns_problem import DTYPES, Options, Problem
from multihead import bnns

SIZES = {"T": 13, "S": 37, "d_model": 23, "k_dim": 9, "v_dim": 31, "d_key": 6, "d_value": 7}


@pytest.mark.parametrize("misaligned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flags_of_an_output_do_not_count(
    dtype: Any, misaligned: bool, rng: np.random.Generator
) -> None:
    problem = Problem.make(rng, Options(**SIZES, dtypes=(dtype,), misaligned=misaligned))
    output = problem.slots["output"]
    found = []
    for flags in (bnns.NDArrayFlags.BackpropSet, bnns.NDArrayFlags.BackpropAccumulate):
        output.flags = flags
        output.array[...] = 3
        problem.create()
        problem.forward()
        found.append(output.array.copy())
    np.testing.assert_array_equal(*found)
