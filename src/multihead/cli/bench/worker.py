"""The process that measures: it reads a task from standard input and writes lines of JSON.

``{"done": 0.4}`` says how far it is, ``{"cell": ...}`` what it found for a shape and a pass.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.typing import NDArray

from multihead.cli.bench.contenders import OURS, Steps, enter
from multihead.cli.bench.measure import alternate, summary
from multihead.cli.bench.problem import PASSES, Problem, Shape
from multihead.tolerance import error

PATIENCE = 5  # who takes more than this part of a measurement for a call has one turn
# of results against ours: who is wrong by more computes something else, and its time says nothing
AGREEMENT = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 1e-1}


def work(task: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    """Measure what a task names.

    Parameters
    ----------
    task : dict
        ``shapes``, ``dtype``, ``threads``, ``seconds`` in all, ``contenders`` by name.
    write : callable
        Is given each line.
    """
    cells = len(task["shapes"]) * len(PASSES)
    for i, sizes in enumerate(task["shapes"]):
        problem = Problem.of(Shape(*sizes), task["dtype"], task["threads"])
        steps, absent = enter(problem, task["contenders"])
        for j, name in enumerate(PASSES):
            begun = i * len(PASSES) + j

            def tell(share: float, begun: int = begun) -> None:
                write({"done": (begun + share) / cells})

            cell = Cell(name, task["dtype"], task["seconds"] / cells, task["threads"])
            found = cell.measure(steps, tell)
            found |= {"shape": sizes, "pass": name, "absent": absent | found["absent"]}
            write({"cell": found})


class Cell(NamedTuple):
    """One shape and pass: which, in which dtype, for how many seconds, on how many threads."""

    name: str
    dtype: str
    seconds: float
    threads: int

    def measure(self, steps: dict[str, Steps], tell: Callable[[float], None]) -> dict[str, Any]:
        """Warm up, compare and time the pass of all who have it."""
        calls: dict[str, Callable[[], Any]] = {}
        absent: dict[str, str] = {}
        slow: dict[str, list[float]] = {}
        ours: list[NDArray[Any]] = []
        for who, each in steps.items():
            call = getattr(each, self.name)
            if call is None:
                absent[who] = "no backward"
                continue
            try:
                call()
                start = time.perf_counter()
                result = call()
                took = time.perf_counter() - start
                found = each.read(result)
            except Exception as fault:  # theirs, whatever it is, ends only their part
                if who == OURS:
                    raise
                absent[who] = f"{type(fault).__name__}: {fault}"
                continue
            ours = ours or found
            worst = max(error(a, b) for a, b in zip(found, ours, strict=True))
            if not worst <= AGREEMENT[self.dtype]:
                absent[who] = f"other results, by {worst:.0e}"
            elif who != OURS and took > self.seconds / PATIENCE:
                slow[who] = [took]
            else:
                calls[who] = call
        times, share = alternate(calls, self.seconds, self.threads, tell)
        times |= slow
        summaries = {who: summary(times[who]) for who in steps if who in times}
        return {"granted": round(share, 3), "times": summaries, "absent": absent}


def main() -> None:
    """Do the task on standard input."""
    lines, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no line of ours

    def write(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=lines, flush=True)

    work(json.load(sys.stdin), write)


if __name__ == "__main__":
    main()
