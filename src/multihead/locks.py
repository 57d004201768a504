"""Locks of objects that threads share, which a forked child finds open."""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

_owners: WeakSet[Any] = WeakSet()


def give_lock(owner: Any) -> None:
    """Give an object its `_lock`, and another one in every forked child."""
    owner._lock = threading.Lock()
    _owners.add(owner)


def _renew() -> None:
    """Replace locks that a thread may hold which a forked child does not have."""
    for owner in list(_owners):
        owner._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
