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
    from multihead import (  # noqa: F401
        bnns,
        checkpoint,
        distributed,
        functional,
        jax,
        maps,
        plot,
        reference,
        torch,
    )

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

_ASIDE = ("bnns", "distributed", "jax", "maps", "plot", "torch")  # modules; some want an extra
_MODULES = ("checkpoint", "functional", "reference", *_ASIDE)

register_if_loaded()


def __dir__() -> list[str]:
    """Name what is public."""
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*__all__, *_ASIDE, "__version__", *own})


def __getattr__(name: str) -> Any:
    """Import on first use what most programs do without."""
    if name in _MODULES:
        try:
            return importlib.import_module(f"multihead.{name}")
        except ImportError as why:  # so that hasattr() says no
            raise AttributeError(f"multihead.{name}: {why}") from why
    if name == "__version__":
        from importlib.metadata import version

        return version("multihead")
    message = f"module 'multihead' has no attribute {name!r}"
    raise AttributeError(message + ("" if name.startswith("_") else meant(name, __all__)))
