"""Locks of objects that threads share, which a forked child finds open."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

_owners: WeakKeyDictionary[Any, Callable[[], Any]] = WeakKeyDictionary()


def give_lock(owner: Any, kind: Callable[[], Any] = threading.RLock) -> None:
    """Give an object its `_lock`, and another one in every forked child."""
    owner._lock = kind()
    _owners[owner] = kind


def turn_of(owner: Any) -> Any:
    """Return the lock of an object, or raise where a call of this very thread has it.

    A signal's handler may come during that call, which would never get on if it waited here.
    """
    lock = owner._lock
    if lock._is_owned():
        way = "leave it alone in handlers of signals, or raise there"
        raise RuntimeError(f"{type(owner).__name__}: a call of this thread is using it ({way})")
    return lock


def _renew() -> None:
    """Replace locks that a thread may hold which a forked child does not have."""
    for owner, kind in list(_owners.items()):
        owner._lock = kind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
