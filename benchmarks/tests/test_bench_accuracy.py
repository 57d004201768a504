"""The accuracy page: errors are what they are said to be, and its tables are those of its JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import tables
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import measure, page, problems
from benchmarks.accuracy.cases import DRAWS, DTYPES, FUNCTIONS, LOGITS, TENSORS, Case, cases
from benchmarks.accuracy.errors import Error, deviation
from benchmarks.accuracy.problems import Problem, computed
from benchmarks.accuracy.verdict import METRICS, RELATIVE, allowed, pairs
from benchmarks.contenders import OURS, TORCH
from benchmarks.measure import DisagreementError
from multihead import reference

TINY = {16: 2, 20: 1}

Document = dict[str, Any]


@pytest.fixture(scope="module")
def found() -> Document:
    """Every case of tiny lengths, as it would be read from its file."""
    text = json.dumps(measure.measure(TINY, lambda case: None))
    document: Document = json.loads(text)
    return document


def numbers(region: str) -> list[list[str]]:
    """The cells of a region's rows, without what marks them."""
    lines = [line for line in region.splitlines() if line[2:3].isdigit()]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


# what is measured


def test_the_cases_are_those_that_are_promised() -> None:
    made = cases(DRAWS)
    assert len(set(made)) == len(made) == 2 * 3 * 5 * 4
    assert (min(DRAWS), max(DRAWS)) == (16, 16384)
    assert LOGITS == (1, 10, 100, 1000)
    assert DTYPES == ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_logits_have_the_deviation_that_is_promised(function: str, logits: int) -> None:
    problem = Problem.of(Case(function, "bfloat16", 512, logits)).exact()
    q, k, _ = problem.inputs
    if problem.parameters:
        weights = problem.parameters["in_proj_weight"].chunk(3)
        biases = problem.parameters["in_proj_bias"].chunk(3)
        q, k = (
            (x @ w.T + b).unflatten(-1, (2, 64)).transpose(1, 2)
            for x, w, b in zip((q, k), weights, biases, strict=False)
        )
    scores = q @ k.mT / 8
    assert float(scores.std()) == pytest.approx(logits, rel=0.1)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_tensor_is_compared(function: str) -> None:
    problem = Problem.of(Case(function, "float32", 4, 1))
    parameters = {name for name, _ in torch.nn.MultiheadAttention(8, 2).named_parameters()}
    for who in (OURS, TORCH):
        results = computed(problem, who)
        assert set(results) == set(TENSORS[function])
        assert all(x.dtype == torch.float64 for x in results.values())
    wanted = {"out", "query", "key", "value"}
    assert set(TENSORS[function]) == (wanted if function == "function" else wanted | parameters)


def test_the_reference_is_the_oracle_s() -> None:
    problem = Problem.of(Case("module", "bfloat16", 6, 10)).exact()
    inputs = [x.numpy() for x in problem.inputs]
    params = {name: x.numpy() for name, x in problem.parameters.items()}
    result = reference.forward(params, *inputs, num_heads=2)
    found = computed(problem, OURS)
    np.testing.assert_allclose(found["out"], result.out, rtol=1e-11, atol=1e-12)


def test_references_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = problems.computed

    def wrong(problem: Problem, who: str) -> Any:
        results = right(problem, who)
        return results | {"key": results["key"] * (1 + 1e-8 * (who == TORCH))}

    monkeypatch.setattr(measure, "computed", wrong)
    with pytest.raises(DisagreementError, match=r"ours and PyTorch's differ by 1.0e-08 in key"):
        measure.measure_case(Case("function", "float32", 4, 1), 1)


# errors


def test_draws_are_taken_together() -> None:
    rng = np.random.default_rng(0)
    exact, noise = rng.standard_normal((2, 3, 40))
    apart, once = Error(4), Error(1)
    for x, e in zip(exact, noise, strict=True):
        apart.add(x + e, x)
    once.add(exact + noise, exact)
    assert apart.relative == pytest.approx(np.linalg.norm(noise) / np.linalg.norm(exact))
    assert apart.maximum == pytest.approx(np.abs(noise).max() / np.abs(exact).max())
    assert (once.relative, once.maximum) == pytest.approx((apart.relative, apart.maximum))
    assert (len(apart.squares), len(once.squares)) == (12, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad: float) -> None:
    error, right = Error(2), Error(2)
    error.add(np.array([1.0, bad]), np.ones(2))
    right.add(np.ones(2), np.ones(2))
    assert error.relative == error.maximum == math.inf
    assert right.relative == right.maximum == 0.0
    assert deviation(error, right) == 0.0


def test_the_deviation_is_that_of_drawing_anew() -> None:
    rng = np.random.default_rng(0)
    ratios, told = [], []
    for _ in range(200):
        pair = Error(16), Error(16)
        for error in pair:
            error.add(rng.standard_normal(800), np.ones(800))
        ratios.append(pair[0].relative / pair[1].relative)
        told.append(deviation(*pair))
    assert np.mean(told) == pytest.approx(np.std(ratios), rel=0.15)


def doctored(found: Document, factor: float) -> Document:
    """The same figures, where one relative error of ours is so many times PyTorch's."""
    document: Document = json.loads(json.dumps(found))
    told = document["cases"][0]["tensors"]["key"]
    told |= {"deviation": 0.01}
    told[OURS]["relative"] = factor * told[TORCH]["relative"]
    return document


@pytest.mark.parametrize(("factor", "larger"), [(1.04, False), (1.06, True), (math.inf, True)])
def test_a_larger_error_is_found(found: Document, factor: float, larger: bool) -> None:
    (pair,) = (
        pair
        for pair in pairs({"cases": doctored(found, factor)["cases"][:1]})
        if (pair.tensor, pair.metric) == ("key", RELATIVE)
    )
    assert pair.larger == larger
    assert allowed(RELATIVE, 0.1) == 1.3


# the page


def test_the_tables_are_those_of_the_figures(found: Document) -> None:
    told = pairs(found)
    cells = 3 * len(TINY) * len(LOGITS) * len(METRICS)
    assert len(told) == sum(len(TENSORS[f]) for f in FUNCTIONS) * cells
    for metric in METRICS:
        rows = numbers(page.errors(found, metric))
        cells = [cell.split(" / ") for row in rows for cell in row[2:]]
        of_metric = [pair for pair in told if pair.metric == metric]
        # the page has a dtype after the other, the file a function after the other
        of_metric.sort(key=lambda pair: DTYPES.index(pair.dtype))
        assert [[float(x) for x in cell] for cell in cells] == [
            pytest.approx([pair.ours, pair.theirs], rel=0.05) for pair in of_metric
        ]


def test_a_larger_error_is_bold_and_told(found: Document) -> None:
    document = doctored(found, 3.0)
    plain = doctored(found, 1.0)
    assert (
        page.errors(document, RELATIVE).count("**") == page.errors(plain, RELATIVE).count("**") + 2
    )
    assert "bold below" in page.summary(document)
    assert "module float32" in " ".join(page.summary(doctored(found, 1e9)).split())


def test_nothing_larger_is_told_too(found: Document) -> None:
    document: Document = json.loads(json.dumps(found))
    for case in document["cases"]:
        for told in case["tensors"].values():
            told[OURS] = told[TORCH]
    text = page.summary(document)
    assert "Ours is larger nowhere." in text
    assert f"| 1.00 | 1.00 | 1.00 | 0 of {8 * 8 * 2} |" in text


def test_the_page_says_what_computed(found: Document) -> None:
    text = " ".join(page.summary(found).split())
    machine = found["machine"]
    assert f"our kernel set: {machine['isa']}; PyTorch {machine['versions']['torch']}" in text
    assert f"({', '.join(machine['instructions']) or 'instructions not told'})" in text


def test_the_committed_figures_are_of_the_whole() -> None:
    found = json.loads(command.RESULT.read_text())
    told = [
        Case(*(case[name] for name in ("function", "dtype", "length", "logits")))
        for case in found["cases"]
    ]
    assert told == cases(DRAWS)
    text = (tables.ROOT / "docs" / "accuracy.md").read_text()
    assert all(length in DRAWS for length in {case.length for case in told})
    assert f"our kernel set: {found['machine']['isa']}" in " ".join(text.split())


# the command


@pytest.mark.parametrize(
    ("factor", "held", "status"),
    [(1.0, ["float32"], 0), (1.4, ["float32"], 1), (1.4, ["bfloat16"], 0), (1.6, ["bfloat16"], 1)],
)
def test_a_larger_error_fails_the_target(
    factor: float,
    held: list[str],
    status: int,
    found: Document,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = doctored(found, factor)
    document["cases"] = document["cases"][:1]
    for name, told in document["cases"][0]["tensors"].items():
        if name != "key":
            told[OURS] = dict(told[TORCH], relative=0.5 * told[TORCH]["relative"])
        told[OURS]["maximum"] = told[TORCH]["maximum"]
    monkeypatch.setattr(command, "measure", lambda draws, tell: document)
    file = tmp_path / "accuracy.json"
    assert command.main(["--json", str(file), "--hold", *held]) == status
    assert json.loads(file.read_text()) == document
    text = capsys.readouterr().out
    assert ("larger: module float32 L = 16 logits 1, key" in text) == (factor > 1)
    assert ("(not held)" in text) == (factor > 1 and "float32" not in held)
    assert ("over 1.5 times" in text) == (factor > 1.5)


def test_a_larger_mean_fails_the_target(
    found: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document: Document = json.loads(json.dumps(found))
    for factor, status in ((1.02, 1), (0.98, 0)):
        for case in document["cases"]:
            for told in case["tensors"].values():
                told[OURS] = dict(told[TORCH], relative=factor * told[TORCH]["relative"])
        monkeypatch.setattr(command, "measure", lambda draws, tell: document)
        assert command.main(["--json", str(tmp_path / "a.json")]) == status


def test_the_target_writes_figures_and_page(
    found: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(command, "measure", lambda draws, tell: found)
    monkeypatch.setattr(command, "RESULT", tmp_path / "accuracy.json")
    monkeypatch.setattr(command.tables, "main", lambda arguments: written.append(arguments))
    command.main(["--quick"])
    assert not written
    command.main([])
    assert written == [[]]
    assert json.loads((tmp_path / "accuracy.json").read_text()) == found
