"""A call that may run out of memory, and what lets each of its allocations fail in turn.

Used with failing_heap preloaded: see out_of_memory.py.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

RNG = np.random.default_rng(5)
_MOST = 2000  # allocations of a call


class Case(NamedTuple):
    """A call, the arrays that a failure must leave alone, and what to do before each call."""

    call: Callable[[], Any]
    watched: list[np.ndarray]
    prepare: Callable[[], None] = lambda: None


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def bits(result: Any) -> list[bytes]:
    return [np.ascontiguousarray(x).tobytes() for x in result]


def no_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: Python's, PyTorch's for its tensors, or BNNS's."""
    said = str(error)
    return isinstance(error, MemoryError) or any(
        words in said for words in ("can't allocate memory", "out of memory")
    )


class Failing:
    """A case, whose allocations fail one at a time."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.heap = ctypes.CDLL(None)
        self.heap.failing_heap_live.restype = ctypes.c_long
        case.prepare()
        self.expected = bits(case.call())
        gc.collect()
        gc.freeze()  # what is there now need not be looked through again

    def fail(self, n: int) -> bool | None:
        """Let the n-th allocation fail; return whether the call did, None if there is none."""
        case = self.case
        case.prepare()
        before = bits(case.watched)
        self.heap.failing_heap_arm(n, 1)
        try:
            result = case.call()
        except (MemoryError, RuntimeError, ValueError) as error:
            failed = self.heap.failing_heap_disarm()
            if not failed or not no_memory(error):
                raise AssertionError(f"allocation {n}, failed: {failed}") from error
        else:
            failed = self.heap.failing_heap_disarm()
            # maybe one that may fail: a worker's, or of the list of blocks that are kept
            assert bits(result) == self.expected, f"allocation {n}: wrong without an error"
            return False if failed else None
        assert bits(case.watched) == before, f"allocation {n}: something was written"
        case.prepare()
        assert bits(case.call()) == self.expected, f"after allocation {n} the call is wrong"
        return True

    def living(self) -> int:
        """Count the engine's allocations that nothing has given back."""
        gc.collect()
        return int(self.heap.failing_heap_live())


def fail_every_allocation(case: Case) -> int:
    """Let each allocation of a case fail; return how many made the call fail."""
    failing, failures = Failing(case), 0
    for n in range(_MOST):
        before = failing.living()
        done = failing.fail(n)
        if done is None:
            return failures
        failures += done
        more = failing.living()
        if more > before:  # once: what a thread keeps, as the text of its last error
            failing.fail(n)
            assert failing.living() <= more, f"allocation {n} leaves something behind"
    raise AssertionError("no end of allocations")
