"""Modules whose methods run in the scope: of a class beside their own, and back."""

from __future__ import annotations

import functools
from typing import Any

import torch

from multihead.torch import kinds
from multihead.torch.scope import attention, is_redirected

_BESIDE = "_multihead_redirecting"  # a class's own attributes: those beside it, by their methods
_PLAIN = "_multihead_plain"  # and what one of these is beside, with its methods


def redirecting(module: torch.nn.Module, methods: tuple[str, ...]) -> Any:
    """Return the class of a module with some of its methods in the scope."""
    return kinds.outside_in(module, type(module), lambda kind: _beside(kind, methods))


def plain(module: torch.nn.Module) -> Any:
    """Return the class that a module had; None where no method of it is in the scope."""
    return kinds.outside_in(module, type(module), lambda kind: vars(kind).get(_PLAIN, (None,))[0])


def redirects(module: torch.nn.Module) -> bool:
    """Whether methods of a module run in the scope."""
    return any(map(is_beside, type(module).__mro__))


def is_beside(kind: type) -> bool:
    """Whether a class was made here."""
    return _PLAIN in vars(kind)


def _beside(kind: Any, methods: tuple[str, ...]) -> Any:
    """Return the class beside another, the same each time."""
    if _BESIDE not in vars(kind):
        setattr(kind, _BESIDE, {})
    made = vars(kind)[_BESIDE]
    if methods not in made:
        names = {name: _in_scope(kind, name) for name in methods}
        names |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        names |= {"__doc__": kind.__doc__, "__reduce_ex__": _reduce, _PLAIN: (kind, methods)}
        names["__prepare_scriptable__"] = _as_plain
        made[methods] = type(kind.__name__, (kind,), names)
    return made[methods]


def _in_scope(kind: Any, name: str) -> Any:
    inner, scope = getattr(kind, name), attention()

    @functools.wraps(inner)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_redirected():
            return inner(self, *args, **kwargs)
        with scope:
            return inner(self, *args, **kwargs)

    return method


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    """Pickle a module by the class that its own is beside."""
    arguments = next(vars(x)[_PLAIN] for x in type(module).__mro__ if _PLAIN in vars(x))
    return _made_again, arguments, kinds.state_of(module)


def _made_again(kind: type, methods: tuple[str, ...]) -> Any:
    made: Any = _beside(kind, methods)
    return made.__new__(made)


def _as_plain(module: Any) -> Any:
    """Return a module of the class that was, as what compiles its source needs it."""
    kind = plain(module)
    if kind is None:
        return module
    other = kind.__new__(kind)
    other.__dict__.update(module.__dict__)
    return other.__prepare_scriptable__() if hasattr(other, "__prepare_scriptable__") else other
