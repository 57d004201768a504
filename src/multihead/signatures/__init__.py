"""What type checkers see of the calls whose results are of the caller's kind of array.

A NumPy array in gives NumPy arrays out, with its dtype; a `Ragged` gives a `Ragged`; an array of
any other kind its own kind. Nothing here runs: `typed_as` hands a function back as it is, and what
carries the overloads raises NotImplementedError if it is called by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from multihead.signatures.functional import attention_backward, attention_call
from multihead.signatures.layer import layer_backward, layer_call, layer_init

F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "attention_backward",
    "attention_call",
    "layer_backward",
    "layer_call",
    "layer_init",
    "typed_as",
]


def typed_as(signature: F) -> Callable[[Callable[..., Any]], F]:
    """Show a function to type checkers with the overloads of `signature`."""

    def unchanged(function: Any) -> F:
        shown: F = function  # tests/test_typing.py holds names and defaults together
        return shown

    return unchanged
