"""Multi-head attention for the CPU, forward and backward, on NumPy arrays.

`MultiheadAttention` is the layer, `functional` the attention inside it, `Ragged` a batch without
padding, `Rope` rotary positions, `reference` the same maths in plain NumPy to read.
``multihead.checkpoint`` saves layers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:  # first: what it refuses, NumPy may stumble over
    from multihead import _native  # noqa: F401
except ImportError as error:
    from multihead.cli.start import end_if_command

    end_if_command(error)
    raise
from multihead.kv_cache import KVCache
from multihead.layer import MultiheadAttention
from multihead.mask_warning import MaskWarning
from multihead.ragged import Ragged
from multihead.rope import Rope
from multihead.suggestions import meant
from multihead.threadpools import register_if_loaded, register_threadpoolctl
from multihead.threads import get_num_threads, set_num_threads, show_config

if TYPE_CHECKING:
    from multihead import checkpoint, functional, reference

    __version__: str

__all__ = [
    "KVCache",
    "MaskWarning",
    "MultiheadAttention",
    "Ragged",
    "Rope",
    "checkpoint",
    "functional",
    "get_num_threads",
    "reference",
    "register_threadpoolctl",
    "set_num_threads",
    "show_config",
]

register_if_loaded()


def __getattr__(name: str) -> Any:
    """Import on first use what most programs do without."""
    if name in ("checkpoint", "functional", "reference"):
        return importlib.import_module(f"multihead.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("multihead")
    message = f"module 'multihead' has no attribute {name!r}"
    raise AttributeError(message + ("" if name.startswith("_") else meant(name, __all__)))
