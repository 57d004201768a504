"""Every target, in the order in which they are measured and printed."""

from __future__ import annotations

from collections.abc import Sequence

from multihead.bench.targets import (
    attention,
    bnns,
    coexist,
    grid,
    layer,
    processes,
    ragged,
    threads,
)
from multihead.bench.targets.target import Target

__all__ = ["TARGETS", "choose"]

TARGETS: tuple[Target, ...] = (
    *grid.TARGETS,
    *layer.TARGETS,
    *ragged.TARGETS,
    *attention.TARGETS,
    *threads.TARGETS,
    *coexist.TARGETS,
    *bnns.TARGETS,
    *processes.TARGETS,
)


def choose(names: Sequence[str]) -> list[Target]:
    """Return the targets whose names begin with one of these.

    Raises
    ------
    ValueError
        If a name begins no target's; lists them all.

    Examples
    --------
    >>> [target.name for target in choose(["dropout", "memory"])]
    ['dropout-2048', 'dropout-4096', 'memory']
    """
    for name in names:
        if not any(target.name.startswith(name) for target in TARGETS):
            known = ", ".join(target.name for target in TARGETS)
            raise ValueError(f"no target begins with {name!r}; there are {known}")
    return [target for target in TARGETS if target.name.startswith(tuple(names))]
