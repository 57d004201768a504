"""`multihead check`: good here, and bad where anything is wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from command_line import run
from multihead import _native, reference
from multihead.cli import check, main
from multihead.cli.check import bits, layers
from multihead.cli.check.problem import Found, Problem
from multihead.cli.elements import DTYPES


@pytest.fixture(autouse=True)
def as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the kernel sets for tests alone out: they are none of an installation's."""
    names = [name for name in _native.available_isas() if name in ("avx2", "neon", "baseline")]
    monkeypatch.setattr(_native, "available_isas", lambda: names)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("without", ["rich", "ml_dtypes", "torch"])
def test_this_installation_is_good(without: str) -> None:
    done = run("check", "--json", without=without, timeout=100)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["verdict"] == "good"
    parts = {part["part"]: part for part in found["parts"]}
    alone = {"oracle, results", "KV cache, gradients"}  # which there are not
    both = {f"{part}, {kind}" for part in check.PARTS for kind in ("results", "gradients")} - alone
    assert {*parts} - {check.BITS[2]} == both | {*check.BITS[:2]}
    count = len(found["kernel_sets"]) * len(DTYPES)
    assert all(part["good"] for part in parts.values())
    everywhere = [name for name in both if not name.startswith(("oracle", "BNNS"))]
    assert {parts[name]["comparisons"] % count for name in everywhere} == {0}
    assert parts["bits, repeated"]["comparisons"] == count


@pytest.mark.timeout(120)
def test_it_says_one_line_a_part_and_a_verdict() -> None:
    done = run("check", without="rich", COLUMNS="60")
    lines = done.stdout.splitlines()
    assert all(len(line) <= 60 for line in lines)
    # two have no second line, and of bits there are two, or three with fused multiply-add
    assert sum(line.endswith("  ok") for line in lines) - 2 * len(check.PARTS) in (0, 1)
    assert re.fullmatch(r"Good: \d+ comparisons in [\d.]+ s\.", lines[-1])


def test_another_result_is_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(dtype: str) -> list[Problem]:
        def run() -> Found:
            found = right.run()
            return found | {"in_proj_bias": found["in_proj_bias"] * (1 + 1e-3)}

        right = layers.plain(dtype)[0]
        return [Problem(run, right.expected)]

    monkeypatch.setattr(check, "PARTS", {"layer": wrong})
    assert main(["check"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^layer, gradients +float64 .* BAD$", said, re.M)
    assert "layer, gradients: in_proj_bias in float64 on baseline: error" in said
    assert "layer, results: " not in said
    assert "Bad: 1 of 5 parts" in said


def test_what_is_not_finite_is_bad_and_still_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Problem(lambda: {"out": np.full(2, np.nan)}, {"out": np.ones(2)})
    monkeypatch.setattr(check, "PARTS", {"layer": lambda dtype: [nothing]})
    assert main(["check", "--json"]) == 1
    text = capsys.readouterr().out
    found = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert found["verdict"] == "bad"
    assert found["parts"][0]["error"] is None


def test_an_error_is_bad_and_does_not_end_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(dtype: str) -> list[Problem]:
        raise OSError("libmultihead.so: cannot open shared object file")

    monkeypatch.setattr(check, "PARTS", {"BNNS in C": broken, "ragged": layers.ragged})
    assert main(["check"]) == 1
    said = capsys.readouterr().out
    assert "BNNS in C, results: OSError: libmultihead.so: cannot open" in said
    assert re.search(r"^ragged, gradients .* ok$", said, re.M)


def test_a_wrong_gradient_of_the_oracle_is_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = reference.backward

    def backward(*arguments: object) -> dict[str, np.ndarray]:
        grads = right(*arguments)  # type: ignore[arg-type]
        return grads | {"sinks": -grads["sinks"]}

    monkeypatch.setattr(reference, "backward", backward)
    monkeypatch.setattr(check, "PARTS", {"oracle": check.PARTS["oracle"]})
    assert main(["check"]) == 1
    assert "oracle, gradients: sinks in float64 on NumPy" in capsys.readouterr().out


def test_other_bits_are_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hashes(isa: str, dtype: str) -> list[tuple[int, str]]:
        return [(1, isa), (1, isa + "again"), (3, isa)]

    monkeypatch.setattr(check, "PARTS", {})
    monkeypatch.setattr(bits, "hashes", hashes)
    monkeypatch.setattr(_native, "available_isas", lambda: ["one", "two", "baseline"])
    assert main(["check"]) == 1
    said = capsys.readouterr().out
    assert "bits, repeated: a second call in float32 on one: other bits" in said
    assert "bits, kernel sets: two in float64: other bits" in said
    assert "bits, kernel sets: baseline" not in said
    assert "bits, any threads: " not in said


def test_what_had_no_time_is_not_called_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "SECONDS", 0.0)
    assert main(["check"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^ragged, results +late$", said, re.M)
    assert "Unfinished: 12 of 12 parts had no time" in " ".join(said.split())


def test_the_kernel_set_and_the_threads_are_put_back() -> None:
    before = _native.isa(), _native.get_num_threads()
    assert main(["check", "--json"]) == 0
    assert (_native.isa(), _native.get_num_threads()) == before
