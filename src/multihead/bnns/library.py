"""Where the library and its header lie, and the C functions in it."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_size_t, c_void_p
from pathlib import Path

from multihead.bnns.structs import (
    FilterParameters,
    LayerParametersMultiheadAttention,
    MHAProjectionParameters,
    NDArrayDescriptor,
)

_PACKAGE = Path(__file__).parent.parent


def library_path() -> Path:
    """Return the path of ``libmultihead``, for a C program to link with.

    Examples
    --------
    >>> library_path().name.startswith("libmultihead")
    True
    """
    return next(path for path in _PACKAGE.iterdir() if path.name.startswith("libmultihead."))


def include_dir() -> Path:
    """Return the folder to include ``<multihead/bnns.h>`` from.

    Examples
    --------
    >>> (include_dir() / "multihead" / "bnns.h").exists()
    True
    """
    return _PACKAGE / "include"


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    descriptor, projection = POINTER(NDArrayDescriptor), POINTER(MHAProjectionParameters)
    size, address = c_size_t, c_void_p
    data = (address, size)
    library.multihead_BNNSFilterCreateLayerMultiheadAttention.restype = c_void_p
    library.multihead_BNNSFilterCreateLayerMultiheadAttention.argtypes = (
        POINTER(LayerParametersMultiheadAttention),
        POINTER(FilterParameters),
    )
    library.multihead_BNNSFilterDestroy.restype = None
    library.multihead_BNNSFilterDestroy.argtypes = (c_void_p,)
    library.multihead_BNNSApplyMultiheadAttention.argtypes = (
        *(c_void_p, size, *data, *data, descriptor, size, *data, *data, descriptor),
        *(POINTER(size), address, POINTER(size), address),
    )
    library.multihead_BNNSApplyMultiheadAttentionBackward.argtypes = (
        *(c_void_p, size, *data, projection, *data, descriptor, size, projection),
        *(*data, projection, descriptor, descriptor, descriptor, *data, projection),
        *(size, address, POINTER(size), address),
    )
    library.multihead_last_error.restype = ctypes.c_char_p
    return library


LIBRARY = _load()


def compile_flags() -> str:
    """Return the compiler's flags for a program that includes ``<multihead/bnns.h>``."""
    return f"-I{include_dir()}"


def link_flags() -> list[str]:
    """Return the linker's flags for a program that uses the library where it lies."""
    folder = library_path().parent
    return [f"-L{folder}", "-lmultihead", f"-Wl,-rpath,{folder}"]
