"""`multihead plan`: what the cost model says, for every scheme that fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from command_line import run
from multihead.distributed.cost import cost
from multihead.distributed.work import Cluster, Scheme, Work

ROOT = Path(__file__).resolve().parents[1]
GIVEN = ("--length", "65536", "--heads", "12", "--key-heads", "4", "--ranks", "4")
GIVEN += ("--bandwidth", "1.25", "--latency", "20", "--handling", "10", "2", "--rate", "300", "200")


@pytest.mark.timeout(60)
def test_it_says_what_the_model_says() -> None:
    done = run("plan", *GIVEN, "--causal", "--dtype", "bfloat16", "--layers", "3", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    work = Work(65536, 1, 12, 4, 64, causal=True, itemsize=2)
    cluster = Cluster(4, 1.25e9, 20e-6, 300e9, 200e9, 10e9, 2e9)
    expected = {Scheme(4, 1): "ring", Scheme(2, 2): "ring of 2 × 2 all-to-all"}
    expected |= {Scheme(1, 4): "all-to-all"}
    assert [row["scheme"] for row in found["schemes"]] == list(expected.values())
    for scheme, row in zip(expected, found["schemes"], strict=True):
        each = cost(work, cluster, scheme)
        assert row["seconds"] == pytest.approx(3 * each.seconds)
        assert row["bytes_sent"] == 3 * each.sent
        assert row["memory"] == 3 * each.kept + each.passing
    least = min(found["schemes"], key=lambda row: row["seconds"])
    assert found["best"] == least["scheme"]
    assert found["cluster"]["rates_measured"] is False


@pytest.mark.timeout(60)
def test_it_fits_a_narrow_terminal() -> None:
    done = run("plan", *GIVEN, "--forward", COLUMNS="60")
    lines = done.stdout.splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert sum(line.startswith(("ring", "all-to-all")) for line in lines) == 3
    assert any(line.startswith("best: ") for line in lines)
    assert "(given)" in done.stdout


@pytest.mark.timeout(60)
def test_rates_are_measured_where_none_are_given() -> None:
    done = run("plan", *GIVEN[: GIVEN.index("--rate")], "--head-dim", "8", "--json")
    found = json.loads(done.stdout)["cluster"]
    assert found["rates_measured"] is True
    assert found["forward"] > 1e6
    assert found["backward"] > 1e6
    done = run("plan", *GIVEN[: GIVEN.index("--handling")], *GIVEN[-3:], "--json")
    found = json.loads(done.stdout)["cluster"]
    assert found["rates_measured"] is False
    assert found["copying"] > 1e6
    assert found["carrying"] > 1e6


@pytest.mark.timeout(120)
def test_plans_in_the_pages_are_what_it_says() -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("command_line.md", "scaling.md")]
    found = [
        match
        for page in pages
        for match in re.findall(r"^\$ multihead (plan .*--rate.*)\n([^`]*)```", page, re.MULTILINE)
    ]
    assert len(found) == 3
    for words, shown in found:
        assert run(*words.split(), COLUMNS="72").stdout == shown


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (GIVEN[2:], "the following arguments are required: --length"),
        ((*GIVEN, "--key-heads", "5"), "argument --key-heads: expected a divisor of 12 heads"),
        ((*GIVEN, "--bandwidth", "0"), "argument --bandwidth: expected a number above 0, got '0'"),
        ((*GIVEN, "--rate", "x", "1"), "argument --rate: expected a number above 0, got 'x'"),
        ((*GIVEN, "--ranks", "1.5"), "expected an integer of at least 1, got '1.5'"),
    ],
)
def test_wrong_words_are_named(words: tuple[str, ...], message: str) -> None:
    done = run("plan", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
