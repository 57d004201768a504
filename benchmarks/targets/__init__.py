"""Every target of each face, in the order in which they are measured and printed."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.targets import (
    agreement,
    attention,
    bnns,
    coexist,
    decoding,
    grid,
    half,
    half_peers,
    jax_attention,
    jax_coexist,
    jax_memory,
    layer,
    models,
    modern,
    overhead,
    processes,
    ragged,
    threads,
)
from benchmarks.targets.target import Target

__all__ = ["FACES", "TARGETS", "choose"]

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

FACES: dict[str, tuple[Target, ...]] = {
    "numpy": TARGETS,
    "half": (*half_peers.TARGETS, *half.TARGETS),
    "modern": (*modern.TARGETS, *decoding.TARGETS),
    "jax": (*jax_attention.TARGETS, *jax_memory.TARGETS, *jax_coexist.TARGETS),
    "torch": (*agreement.TARGETS, *overhead.TARGETS, *models.TARGETS),
}


def choose(names: Sequence[str], face: str = "numpy") -> list[Target]:
    """Return the targets of a face whose names begin with one of these.

    Raises
    ------
    ValueError
        If a name begins no target's; lists them all.

    Examples
    --------
    >>> [target.name for target in choose(["dropout", "memory"])]
    ['dropout-2048', 'dropout-4096', 'memory']
    >>> [target.name for target in choose(["torch-vit-197"], "torch")]
    ['torch-vit-197-eval', 'torch-vit-197-train', 'torch-vit-197-attention']
    """
    targets = FACES[face]
    for name in names:
        if not any(target.name.startswith(name) for target in targets):
            known = ", ".join(target.name for target in targets)
            raise ValueError(f"no target begins with {name!r}; there are {known}")
    return [target for target in targets if target.name.startswith(tuple(names))]
