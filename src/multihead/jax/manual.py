"""Arrays inside `jax.shard_map`: those that every device has alike beside those that vary."""

from __future__ import annotations

from typing import Any, TypeVar

import jax

_T = TypeVar("_T")


def varying_alike(tree: _T) -> _T:
    """Return arrays that vary over the same axes of a mesh, all those that any varies over.

    The derivative of this is a sum over devices, so it stands before what has a derivative of its
    own.
    """
    leaves = jax.tree.leaves(tree)
    every = frozenset().union(*map(_varying, leaves))
    if not every:
        return tree

    def one(x: Any) -> Any:
        axes = tuple(sorted(every - _varying(x), key=str))
        return jax.lax.pcast(x, axes, to="varying") if axes else x

    found: _T = jax.tree.map(one, tree)
    return found


def _varying(x: Any) -> frozenset[Any]:
    aval = jax.typeof(x)
    kind = getattr(aval, "mat", None)  # since JAX 0.10; before, `vma`
    found: frozenset[Any] = aval.vma if kind is None else kind.varying
    return found
