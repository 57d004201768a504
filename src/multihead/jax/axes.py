"""Names of axes, by which calls of the engine are spread over devices.

An operand's axes are a word with a letter for each: "nlhd" are sequences, tokens, heads, features.
Sequences "n" and heads "h" may be spread; "g" are heads of keys, each for a group of "h". Axes that
vmap added stand before, and may be spread too; axes of size 1 are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

SPREAD = "nhg"


class Axes(NamedTuple):
    """The axes of a call's operands and results."""

    operands: tuple[str, ...]
    results: tuple[str, ...]


def named(word: str, shape: Sequence[int]) -> list[str]:
    """Return a name for each axis of an array, "" where it is shared; vmap's are numbers."""
    names = [*map(str, range(len(shape) - len(word))), *word]
    return ["" if size == 1 else name for name, size in zip(names, shape, strict=True)]


def is_spread(name: str) -> bool:
    """Whether an axis of this name may be spread over devices."""
    return name.isdigit() or (name != "" and name in SPREAD)


def sharding_rule(
    axes: Axes, shapes: tuple[Sequence[Any], Sequence[Any]], mesh_sizes: Sequence[int]
) -> dict[str, Any]:
    """Return a call's rule for the propagation of shardings, as `def_partition` takes it.

    Heads of keys follow those of queries where every axis of the mesh divides their number; a part
    of an axis has no name.
    """
    sizes: dict[str, int] = {}
    factors: set[str] = set()
    sides = []
    for words, of in zip(axes, shapes, strict=True):
        for word, shape in zip(words, of, strict=True):
            sizes.update(zip(named(word, shape), shape, strict=True))
    follow = not any(sizes.get("g", 0) % size for size in mesh_sizes)
    grouped = follow and sizes.get("g", 0) > 1 and sizes.get("h") != sizes["g"]

    def factor(name: str) -> str:
        if name == "h" and grouped:
            return "(heads group)"
        heads = {"h": "heads", "g": "heads" if follow else "heads_of_keys"}
        found = heads.get(name, f"axis{name or len(factors)}")
        found += "" if name else "shared"
        factors.add(found)
        return found

    for words, of in zip(axes, shapes, strict=True):
        texts = []
        for word, shape in zip(words, of, strict=True):
            texts.append(" ".join(map(factor, named(word, shape))))
        sides.append(", ".join(texts))
    rule: dict[str, Any] = {"sharding_rule": " -> ".join(sides)}
    if grouped:
        rule["group"] = sizes["h"] // sizes["g"]
    return rule


def spread(axes: Axes, operands: Sequence[Any], count: Any) -> dict[str, Any]:
    """Return what of a mesh each axis is spread over, by what the first operands are.

    Parameters
    ----------
    axes : Axes
    operands : sequence
        Shape and partitions of each.
    count : callable
        Returns how many devices partitions are.
    """
    found: dict[str, Any] = {}
    used: set[str] = set()
    sizes: dict[str, int] = {}
    for word, (shape, partitions) in zip(axes.operands, operands, strict=True):
        for name, size, partition in zip(named(word, shape), shape, partitions, strict=True):
            if not is_spread(name):
                continue
            sizes[name] = size
            parts = partition if isinstance(partition, tuple) else (partition,)
            if name in found or partition is None or used.intersection(parts):
                continue
            found[name] = partition
            used.update(parts)
    heads = found.pop("h", None) or found.pop("g", None)
    found.pop("g", None)
    if heads is not None and all(
        sizes.get(name, 0) % count(heads) == 0 for name in "hg" if name in sizes
    ):
        found |= {"h": heads, "g": heads}
    return {
        name: part
        for name, part in found.items()
        if sizes.get(name, count(part)) % count(part) == 0
    }


def partitions(word: str, shape: Sequence[int], over: dict[str, Any]) -> list[Any]:
    """Return what each axis of an array is spread over."""
    return [over.get(name) for name in named(word, shape)]
