"""BNNS filters that threads share, and others of their own, whose number of threads changes."""

from __future__ import annotations

import numpy as np
import pytest

from bnns_problem import Options, Problem
from callers import at_once
from digests import digest

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("changing")]
CALLERS = 8


def made(number: int, **how: object) -> Problem:
    """A problem without dropout, for which a filter's calls are counted; made again, the same."""
    rng = np.random.default_rng(number)
    sizes = {"batch": 2, "T": 70, "S": 90, "dropout": 0.0, "threads": 0}
    return Problem.make(rng, Options.draw(rng, **(sizes | how)))


def results(problem: Problem) -> str:
    """A hash of all that a forward and a backward write, targets reset before."""
    for slot in (problem.slots["output"], *problem.grads.values()):
        slot.buffer[:] = slot.before
    problem.forward_with_cache()
    problem.backward(cached=True)
    written = (slot.buffer for slot in problem.grads.values())
    return digest(problem.slots["output"].buffer, *written)


@pytest.mark.parametrize("client", [False, True])
def test_callers_of_one_filter_have_the_results_of_one(client: bool) -> None:
    first = made(3, client=client)
    first.create()
    problems = [made(3, client=client) for _ in range(CALLERS)]
    for problem in problems:
        problem.filter = first.filter
    expected = results(first)

    def work(i: int) -> set[str]:
        return {results(problems[i]) for _ in range(3)}

    assert at_once(work, CALLERS) == [{expected}] * CALLERS


def test_filters_of_their_own_are_made_and_used_and_go() -> None:
    def work(i: int) -> list[str]:
        found = []
        for number in (i, i + 1):
            problem = made(number)
            problem.create()
            found.append(results(problem))
            problem.filter = None  # the last who knew it
        return found

    expected = [work(i) for i in range(CALLERS)]
    assert at_once(work, CALLERS) == expected


def test_each_backward_of_a_shared_filter_has_its_own_dropout() -> None:
    def callers() -> list[Problem]:
        problems = [made(5, dropout=0.5) for _ in range(CALLERS)]
        problems[0].create()
        for problem in problems:
            problem.filter = problems[0].filter
        return problems

    def work(problem: Problem) -> list[str]:
        return [results(problem) for _ in range(3)]

    expected = [x for problem in callers() for x in work(problem)]
    assert len(set(expected)) == len(expected)  # another mask for each call
    problems = callers()
    found = [x for each in at_once(lambda i: work(problems[i]), CALLERS) for x in each]
    assert sorted(found) == sorted(expected)
