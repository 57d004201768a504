"""The benchmark of the JAX face: who races, what is compared, its targets; all tiny."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import multihead as mh
from benchmarks.cases import Shape
from benchmarks.measure import DisagreementError
from benchmarks.targets import FACES, jax_attention, jax_coexist, jax_memory
from benchmarks.targets.target import Reached, Run, Target, reach
from cells import BRIEF

try:
    import multihead.jax
except ImportError as why:
    pytest.skip(str(why), allow_module_level=True)

from benchmarks import jax_calls

TINY = Shape(2, 16, 32, 4)


def reached(target: Target) -> Reached:
    found = reach(target, Run("jax", mh.get_num_threads(), BRIEF)).reached
    assert found.value is not None
    return found


def test_the_face_has_the_rows_that_it_is_held_to() -> None:
    bounds = {one.name: (one.bound, one.at_most) for one in FACES["jax"]}
    for word in ("infer", "train"):
        assert bounds[f"jax-{word}-128"] == (1.0, False)
        for length in (512, 2048, 8192):
            assert bounds[f"jax-{word}-{length}"] == (2.0, False)
    assert bounds["jax-overhead"] == (20.0, True)
    assert bounds["jax-memory"] == (1024.0, True)
    assert sum(name.startswith("jax-coexist") for name in bounds) == 6


@pytest.mark.parametrize("training", [False, True])
def test_all_three_compute_the_same(training: bool) -> None:
    steps = jax_calls.contenders(17, 2, training)
    found = {name: step.results() for name, step in steps.items()}
    names = ["out", "d_query", "d_key", "d_value"] if training else ["out"]
    assert [list(results) for results in found.values()] == [names] * 3
    assert found["ours"]["out"].shape == (1, 17, 2, 64)
    for who, error in (("JAX", "differs"), ("NumPy's face", "not the bits")):
        wrong = {
            name: np.nextafter(x, 9) if who != "JAX" else x + 1 for name, x in found[who].items()
        }
        with pytest.raises(DisagreementError, match=error):
            jax_calls.check(found | {who: wrong})


def test_ratios_are_taken_at_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_attention, "LENGTHS", {16: 2})
    monkeypatch.setattr(jax_attention, "NUMPY_LENGTH", 16)
    found = reached(jax_attention._ratio(16, True))
    assert list(found.seconds) == ["ours", "JAX", "NumPy's face"]
    assert found.note.startswith("ours ")
    (beside,) = (one for one in FACES["jax"] if one.name == "jax-numpy")
    assert "train" in reached(beside).note


def test_an_empty_call_takes_some_of_a_call() -> None:
    (overhead,) = (one for one in FACES["jax"] if one.name == "jax-overhead")
    assert "an empty call" in reached(overhead).note


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_the_peak_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_memory, "LENGTH", 32)
    monkeypatch.setattr(jax_memory, "JAX_LENGTH", 1024)
    (memory,) = jax_memory.TARGETS
    found = reached(memory)
    assert found.value is not None
    assert 50 < found.value < 2000
    assert found.note.startswith("JAX's at L = 1024: ")


@pytest.mark.parametrize("single", [False, True])
def test_coexistence_sets_the_threads_back(single: bool) -> None:
    before = mh.get_num_threads()
    note = reached(jax_coexist._coexistence("jax-coexist", TINY, single)).note
    assert "sum of both alone" in note
    assert "busy calls" in note
    assert mh.get_num_threads() == before


def test_a_loss_is_over_the_parts_alone() -> None:
    assert jax_coexist.loss([3.0, 5.0], [1.0, 2.0], [1.0, 0.5]) == [1.5, 2.0]


def test_a_busy_call_gives_what_it_got_after_some_work() -> None:
    short, long = (
        jax_coexist.program(TINY, False, jax_coexist.busy(rounds)) for rounds in (1, 10**7)
    )
    run = Run("jax", 1, BRIEF)
    for step in (short, long):
        step()
        np.testing.assert_array_equal(np.asarray(step.found), np.asarray(step.arrays[0]))
    assert run.ratio(long, short) > 3


def test_a_program_has_both_kinds_or_one() -> None:
    ours = jax_coexist.attention(TINY)
    both, products, attention = (
        jax_coexist.program(TINY, linear, between)
        for linear, between in ((True, ours), (True, None), (False, ours))
    )
    for step in (both, products, attention):
        step()
    assert all(step.found.shape == (2, 16, 32) for step in (both, products, attention))
    found = [np.asarray(step.found) for step in (both, products, attention)]
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_without_jax_the_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_attention, "find_spec", lambda name: None)
    for one in FACES["jax"]:
        found = reach(one, Run("jax", 1, BRIEF))
        assert (found.verdict, found.reached.note) == ("not measured", "jax is not installed")
