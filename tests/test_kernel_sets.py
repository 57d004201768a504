"""Kernel sets with fused multiply-add give the same bits, whatever their width and layout."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import kernel_sets
import multihead as mh
import net_numpy
from multihead import _native
from net_draws import Digest, Draws

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
CALLS = {
    "layer float32": partial(net_numpy.layer_call, dtype=F32),
    "layer float64": partial(net_numpy.layer_call, dtype=F64),
    "ragged": net_numpy.ragged_call,
    "functional float32": partial(net_numpy.functional_call, dtype=F32),
    "functional float64": partial(net_numpy.functional_call, dtype=F64),
    "few queries float32": partial(net_numpy.functional_call, dtype=F32, few=True),
    "few queries float64": partial(net_numpy.functional_call, dtype=F64, few=True),
}
EACH = 40  # calls of a kind


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", CALLS)
def test_sets_and_threads_give_the_same_bits_on_random_calls(kind: str) -> None:
    before = _native.isa(), mh.get_num_threads()
    try:
        for i in range(EACH):
            found = {}
            for turn, isa in enumerate(kernel_sets.EXACT_SETS, i):
                _native.use_isa(isa)
                mh.set_num_threads(1 + turn % 3)
                digest = Digest()
                call = CALLS[kind](Draws(f"sets, {kind}, call {i}"), digest)
                if kernel_sets.cuts_sums_alike(isa, call):
                    found[isa] = str(digest)
            assert len(set(found.values())) == 1, (i, call, found)
    finally:
        _native.use_isa(before[0])
        mh.set_num_threads(before[1])


def test_every_set_is_known(isa: str) -> None:
    assert _native.isa() == isa
    assert isa in _native.available_isas()


def test_no_switch_over_dtypes_has_a_default() -> None:
    # so that -Werror=switch names every place that a new dtype must be added to
    csrc = kernel_sets.ROOT / "csrc"
    switch = re.compile(r"switch \([^{]*\) \{(?P<body>.*?)\n  \}", re.S)
    found = [
        (path.name, match["body"])
        for path in [*csrc.rglob("*.h"), *csrc.rglob("*.cpp")]
        for match in switch.finditer(path.read_text())
        if "case DType::" in match["body"]
    ]
    assert len(found) >= 2
    assert [name for name, body in found if "default:" in body] == []
    assert "-Werror=switch" in Path(kernel_sets.ROOT / "CMakeLists.txt").read_text()
