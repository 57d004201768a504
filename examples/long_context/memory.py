"""How much memory a step needs at its peak, as the system counts it."""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MMAP_THRESHOLD, _ARRAY = -3, 128 * 1024  # of glibc's mallopt; bytes


def _status(name: str) -> int:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


class Peak:
    """The largest resident memory since `begin`, beyond what there was; bytes.

    Where the system does not forget its peak on request, as only Linux does, it is the growth of
    the largest ever.
    """

    def __init__(self) -> None:
        c = ctypes.CDLL(None)
        self._trim = getattr(c, "malloc_trim", None)  # of glibc
        if self._trim is not None:
            # an array is the system's as soon as it is freed, not a hole that may be filled again
            c.mallopt(_MMAP_THRESHOLD, _ARRAY)

    def begin(self) -> None:
        """Give back what is not in use, and forget the peak so far."""
        gc.collect()
        if self._trim is not None:
            self._trim(0)
        try:
            _FORGET.write_text("5")
            self._before = _status("VmRSS")
        except OSError:
            self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def bytes(self) -> int:
        """Return the growth of the peak."""
        try:
            return _status("VmHWM") - self._before
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self._before
