"""No result of some four thousand random calls has changed by a bit since they were recorded."""

from __future__ import annotations

import pytest

import net
import net_draws
from kernel_sets import EXACT_SETS, FOR_TESTS, OURS, cuts_sums_alike
from multihead import _native

OTHERS = [isa for isa in OURS if isa != _native.isa()]
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
HELP = "python tests/net.py --calls BUCKET shows each call of a bucket"


@pytest.mark.timeout(300)
def test_no_bit_has_changed() -> None:
    assert net.differing(net.digests()) == [], HELP


@pytest.mark.timeout(300)
@pytest.mark.parametrize("isa", OTHERS)
def test_no_bit_of_another_kernel_set_has_changed(isa: str) -> None:
    """Of a third of the buckets; `.ci/nightly` has all."""
    assert net.differing(net.digests_of(isa, every=3, timeout=280), isa) == [], HELP


@pytest.mark.timeout(300)
@pytest.mark.parametrize("isa", sorted({*FOR_TESTS} & {*EXACT_SETS}))
def test_no_bit_of_a_set_for_tests_differs(isa: str) -> None:
    before = _native.use_isa(isa)
    try:
        for name in net.differing(net.digests(every=10), isa):
            found = net.calls_of(name)
            _native.use_isa(net.beside(before))
            for (one, call), (other, _) in zip(found, net.calls_of(name), strict=True):
                assert one == other or not cuts_sums_alike(isa, call), (name, call)
            _native.use_isa(isa)
    finally:
        _native.use_isa(before)


def test_every_bucket_is_recorded_and_no_other() -> None:
    for kept in net.recorded().values():
        assert sorted(kept) == sorted(net.buckets())
    calls = sum(count * each for _, count, each in net.KINDS.values())
    assert calls >= 3000


def test_the_words_are_those_of_splitmix64() -> None:
    draws = net_draws.Draws("")
    draws.state = 1234567  # the first words of the generator's published test vector
    assert draws.words(2).tolist() == [6457827717110365317, 3203168211198807973]
    assert draws.words(1).tolist() == [9817491932198370423]
