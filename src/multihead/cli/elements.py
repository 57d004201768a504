"""Numbers in every dtype that a layer takes, bfloat16 without ml_dtypes too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multihead import _native
from multihead.arrays import decode, encode

DTYPES = ("float32", "float64", "float16", "bfloat16")
_BITS = np.dtype(np.uint16)


class Bfloat16:
    """An array of bfloat16, which NumPy has not: bits that speak DLPack.

    Parameters
    ----------
    bits : ndarray of uint16

    Examples
    --------
    >>> import multihead as mh
    >>> layer = mh.MultiheadAttention(4, 2, dtype="bfloat16")
    >>> x = store(np.ones((3, 4)), "bfloat16")
    >>> out, _ = layer(x, x, x)
    >>> type(out).__name__, widen(out).shape
    ('Bfloat16', (3, 4))
    """

    dtype = "bfloat16"

    def __init__(self, bits: NDArray[np.uint16]) -> None:
        self.bits = bits

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **asked: Any) -> Any:
        exported: Any = _native.dlpack_bfloat16(self.bits)
        return exported.__dlpack__()

    def __array_namespace__(self) -> Any:
        """Return where `from_dlpack` is, by which results become arrays of this kind."""
        return SimpleNamespace(from_dlpack=_result)


def _result(x: Any) -> Any:
    """Take what the package hands back; what is not rounded it computes in float32."""
    return x if isinstance(x, np.ndarray) else Bfloat16(_native.bfloat16_bits(x))


def store(x: NDArray[Any], dtype: str) -> Any:
    """Return an array rounded to a dtype, as a layer takes it."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(x, dtype)
    return Bfloat16(encode(np.asarray(x, np.float32), _BITS, True))


def widen(x: Any) -> NDArray[np.float64]:
    """Return an array of any of the dtypes in float64, exactly; bare uint16 is bfloat16's bits."""
    if isinstance(x, Bfloat16):
        x = x.bits
    if x.dtype == _BITS or x.dtype.name == "bfloat16":
        return decode(x, np.dtype(np.float64), True)
    return np.asarray(x, np.float64)
