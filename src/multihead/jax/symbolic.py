"""Sizes that `jax.export` leaves open, where the engine has to know them."""

from __future__ import annotations

from typing import Any

from jax import export

from multihead.checks import wrong


def check_lengths(queries: Any, keys: Any, needed_by: str) -> None:
    """Raise if a length is symbolic."""
    for name, length in (("query", queries), ("key", keys)):
        if export.is_symbolic_dim(length):
            way = "export a program for each; N may be symbolic"
            raise wrong(name, f"a length that is a number, for {needed_by} ({way})", length)
