"""The JAX that this face needs, and the engine's library for XLA."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

try:
    import jax
except ModuleNotFoundError as why:
    if why.name not in ("jax", "jaxlib"):
        raise
    raise ModuleNotFoundError(
        'multihead.jax needs JAX: pip install "multihead[jax]"', name="jax"
    ) from None

OLDEST = (0, 8)
TARGETS = (
    "multihead_attention_forward",
    "multihead_attention_backward",
    "multihead_layer_forward",
    "multihead_layer_backward",
)
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_PREFIX = "" if sys.platform == "win32" else "lib"
_LIBRARY = Path(__file__).parents[1] / f"{_PREFIX}multihead_xla{_SUFFIX}"

if jax.__version_info__ < OLDEST:
    raise ImportError(
        f"multihead.jax needs JAX {'.'.join(map(str, OLDEST))} or later, got {jax.__version__}: "
        "pip install --upgrade jax"
    )
if not _LIBRARY.exists():
    raise ImportError(
        "multihead.jax: this multihead was built where there was no jaxlib; from its sources: "
        "MULTIHEAD_XLA=1 pip install --force-reinstall --no-deps ."
    )
LIBRARY = ctypes.CDLL(str(_LIBRARY))


def _known_version() -> int:
    """Return the version of XLA's interface that this JAX has, as the library says its own."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    major, minor = (
        int(number)
        for name in ("MAJOR", "MINOR")
        for number in re.findall(rf"#define XLA_FFI_API_{name} (\d+)", header)
    )
    return 1000 * major + minor


def register_targets() -> None:
    """Make XLA know the engine's handlers."""
    built, known = LIBRARY.multihead_xla_version(), _known_version()
    if built > known:  # XLA would have no CPU any more
        raise ImportError(
            f"multihead.jax: this multihead was built for a later JAX than {jax.__version__}: "
            "pip install --upgrade jax"
        )
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(LIBRARY, name)), platform="cpu")


register_targets()
