"""Who is measured: each is imported only where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from numpy.typing import NDArray

from multihead.cli.bench.problem import Problem

OURS = "multihead"


class Steps(NamedTuple):
    """What a contender does, and how to read what came of it.

    Attributes
    ----------
    forward : callable
        One call of the layer in inference.
    training : callable or None
        Forward, and backward to the input and all parameters; None where it has no backward.
    read : callable
        From what a step returned to arrays: the output, and the gradient of the input.
    """

    forward: Callable[[], Any]
    training: Callable[[], Any] | None
    read: Callable[[Any], list[NDArray[Any]]]


class Contender(NamedTuple):
    """A name, the module that has its `steps`, what it needs, and the dtypes that it computes."""

    name: str
    module: str
    needs: tuple[str, ...]
    dtypes: tuple[str, ...]


WIDE = ("float32", "float64")
HALF = ("float16", "bfloat16")
CONTENDERS = (
    Contender(OURS, "by_us", (), WIDE + HALF),
    Contender("torch", "by_torch", ("torch",), WIDE + HALF),
    Contender("NumPy", "by_numpy", ("numpy",), WIDE),
    Contender("ONNX Runtime", "by_onnx", ("onnxruntime", "onnx"), WIDE[:1]),
    Contender("JAX", "by_jax", ("jax",), WIDE + HALF),
)


def enter(problem: Problem, names: Sequence[str]) -> tuple[dict[str, Steps], dict[str, str]]:
    """Return the steps of those who can, and why the others cannot.

    Examples
    --------
    >>> from multihead.cli.bench.problem import Shape
    >>> steps, absent = enter(Problem.of(Shape(2, 3, 4, 1), "float16", 1), ["multihead", "NumPy"])
    >>> list(steps), absent
    (['multihead'], {'NumPy': 'does not compute float16'})
    """
    steps: dict[str, Steps] = {}
    absent: dict[str, str] = {}
    for name, module, needs, dtypes in CONTENDERS:
        if name not in names:
            continue
        missing = [package for package in needs if find_spec(package) is None]
        if missing:
            whole = len(missing) == len(needs)
            absent[name] = "not installed" if whole else f"needs {' and '.join(missing)}"
        elif problem.dtype not in dtypes:
            absent[name] = f"does not compute {problem.dtype}"
        else:
            try:
                found = importlib.import_module(f"multihead.cli.bench.{module}")
                steps[name] = found.steps(problem)
            except Exception as error:  # theirs, whatever it is, ends only their part
                if name == OURS:
                    raise
                absent[name] = f"{type(error).__name__}: {error}"
    return steps, absent
