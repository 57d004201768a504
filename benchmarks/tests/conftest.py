"""The benchmark's tests: one thread for torch, as in the others."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
