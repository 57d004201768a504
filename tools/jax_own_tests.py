"""Run JAX's own tests of attention with ours in place: `python tools/jax_own_tests.py CHECKOUT`.

CHECKOUT is a clone of JAX, at the version that is installed. Its tests hold the implementations
that a call names, "xla" and cuDNN's, against the one that it does not name. That one stays JAX's;
whatever is named is ours. It prints what passed, failed, and was left out and why; the exit code is
1 if a test failed, or none ran.
"""

from __future__ import annotations

import importlib.util
import sys
import unittest
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from multihead.jax import dot_product_attention

TESTS = Path("tests", "nn_test.py")
PREFIX = "testDotProductAttention"
CALLS = "multihead_attention"  # how names of the engine's custom calls begin

# what ours cannot pass, by the beginning of what a test calls itself
LEFT_OUT = {
    f"{PREFIX}BiasGradient(batch_size=16": "wants an error for what cuDNN cannot do, and ours can",
}


class Result(unittest.TextTestResult):
    """Counts what passed, too."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self.passed: list[unittest.TestCase] = []

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 (unittest's name)
        """Leave out what is known to be cuDNN's alone."""
        super().startTest(test)
        for name, why in LEFT_OUT.items():
            if what(test).startswith(name):
                setattr(test, test._testMethodName, partial(test.skipTest, why))

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802 (unittest's name)
        """Keep it."""
        super().addSuccess(test)
        self.passed.append(test)


def what(test: unittest.TestCase) -> str:
    """Say which method runs with which parameters."""
    return (test.shortDescription() or test._testMethodName).splitlines()[-1]


def loaded(checkout: Path) -> ModuleType:
    """Import JAX's tests, which read the flags of a command line of their own."""
    sys.argv = sys.argv[:1]
    spec = importlib.util.spec_from_file_location("nn_test", checkout / TESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nn_test"] = module  # where unittest looks for it
    spec.loader.exec_module(module)
    from absl import flags

    flags.FLAGS(sys.argv)
    return module


def put_ours(tests: ModuleType) -> None:
    """Make the named implementations ours, and what asks for cuDNN ask for ours."""
    theirs = jax.nn.dot_product_attention

    def attention(*tensors: Any, implementation: str | None = None, **options: Any) -> Any:
        function = theirs if implementation is None else dot_product_attention
        return function(*tensors, **options)

    def calls_ours(function: Any, *args: Any, **how: Any) -> bool:
        return CALLS in jax.jit(function).lower(*args, **how).as_text()

    jax.nn.dot_product_attention = attention
    vars(tests)["_is_required_cudnn_version_satisfied"] = lambda *versions: True
    vars(tests)["_check_cudnn_backend"] = calls_ours


def main() -> int:
    """Run them and say how it went."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], TESTS).exists():
        raise SystemExit(f"usage: {sys.argv[0]} CHECKOUT, which has {TESTS}")
    tests = loaded(Path(sys.argv[1]))
    put_ours(tests)
    loader = unittest.TestLoader()
    loader.testMethodPrefix = PREFIX
    result = unittest.TextTestRunner(resultclass=Result).run(loader.loadTestsFromModule(tests))
    for test in result.passed:
        print("passed  ", what(test))
    for test, why in result.skipped:
        print("left out", what(test) + ":", why)
    for test, _ in [*result.failures, *result.errors]:
        print("FAILED  ", what(test))
    failed = len(result.failures) + len(result.errors)
    told = f"{len(result.passed)} passed, {len(result.skipped)} left out, {failed} failed"
    print(f"JAX {jax.__version__}: {told}")
    return 0 if result.passed and not failed else 1


if __name__ == "__main__":
    raise SystemExit(main())
