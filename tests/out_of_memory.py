"""Lets each allocation of calls fail in turn: run with failing_heap preloaded, and a group's name.

Each failure must be a MemoryError (or BNNS's -1) that has changed nothing and left nothing behind,
after which the call works. Prints how many allocations of each case failed.
"""

from __future__ import annotations

import ctypes
import importlib
import sys

from memory_faults import Case, fail_every_allocation

GROUPS = ("memory_calls", "memory_objects", "memory_torch")


def main(group: str) -> None:
    """Fail every allocation of a group's cases."""
    module = importlib.import_module(group)
    ctypes.CDLL(None).failing_heap_count()
    cases = {
        name: made
        for name, made in vars(module).items()
        if getattr(made, "__annotations__", {}).get("return") == Case.__name__
    }
    for name, make in cases.items():
        print(name, end=" ", flush=True)
        print(fail_every_allocation(make()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
