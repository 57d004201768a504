"""Arrays in and out: NumPy or any CPU array that speaks DLPack, in its own kind and dtype."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multihead import _native
from multihead.checks import wrong, wrong_type

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_UINT16 = np.dtype(np.uint16)
_CPU = 1  # kDLCPU
_DENSE = 0x101  # flags of an array: C-contiguous and aligned


class Element(NamedTuple):
    """A floating element type.

    `compute` is the NumPy dtype that it is computed in, `stored` that of the arrays which the
    engine reads and writes: bfloat16, which NumPy has not, is its bits.
    """

    name: str
    compute: np.dtype[Any]
    stored: np.dtype[Any]
    half: bool


_ELEMENTS = {
    "float32": Element("float32", _FLOAT32, _FLOAT32, False),
    "float64": Element("float64", _FLOAT64, _FLOAT64, False),
    "float16": Element("float16", _FLOAT32, np.dtype(np.float16), True),
    "bfloat16": Element("bfloat16", _FLOAT32, _UINT16, True),
}


class Kind(NamedTuple):
    """How an array came in, so that a result can go out the same way.

    `dtype` is that of the NumPy array which holds a result (uint16 for bare bfloat16 bits).
    """

    dtype: np.dtype[Any]
    bfloat16: bool = False
    from_dlpack: Callable[[Any], Any] | None = None

    def wrap(self, array: Array) -> Any:
        """Return a NumPy array of `dtype` as an array of this kind, without a copy."""
        if self.from_dlpack is None:
            return array
        return self.from_dlpack(_native.dlpack_bfloat16(array) if self.bfloat16 else array)

    def full(self, shape: Shape, fill: float) -> Array:
        """Return a new NumPy array of `dtype`, filled."""
        if not self.bfloat16:
            return np.full(shape, fill, self.dtype)
        return encode(np.full(shape, fill, _FLOAT32), self.dtype, True)


_NUMPY_KINDS = {e.compute: Kind(e.compute) for e in _ELEMENTS.values()}
_BY_DTYPE = {np.dtype(name): e for name, e in _ELEMENTS.items() if name != "bfloat16"}


def element_of(dtype: Any, name: str = "dtype") -> Element:
    """Return the element type that `dtype` names: a string, a NumPy or a framework's dtype."""
    if dtype is None:
        return _ELEMENTS["float32"]
    if isinstance(dtype, np.dtype) and dtype in _BY_DTYPE:
        return _BY_DTYPE[dtype]
    text = str(dtype).rpartition(".")[2]
    if text not in _ELEMENTS:
        try:
            text = np.dtype(dtype).name
        except TypeError:
            text = str(dtype)
    if text not in _ELEMENTS:
        raise wrong_type(name, "float32, float64, float16 or bfloat16", text)
    return _ELEMENTS[text]


def call_element(element: Element, x: Any) -> Element:
    """Return what a layer of `element` computes an input in: float32 ones take half as it is."""
    dtype = getattr(x, "dtype", None)
    if dtype is _FLOAT32 or element.name != "float32":
        return element
    found = _ELEMENTS.get(getattr(dtype, "name", None) or str(dtype).rpartition(".")[2])
    return element if found is None or not found.half else found


def storage_dtype(element: Element) -> np.dtype[Any]:
    """Return the NumPy dtype of a parameter; bfloat16 is uint16 bits without ml_dtypes."""
    if element.name != "bfloat16":
        return np.dtype(element.name)
    try:
        import ml_dtypes
    except ImportError:
        return _UINT16
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def encode(array: Array, dtype: np.dtype[Any], bfloat16: bool) -> Array:
    """Round an array of the compute dtype to a storage dtype, to nearest even."""
    if not bfloat16:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return array.astype(dtype)
    word = np.ascontiguousarray(array, _FLOAT32).view(np.uint32)
    bits = (word + (0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(array)
    if nan.any():
        bits[nan] = (word[nan] >> 16).astype(np.uint16) | np.uint16(0x40)
    return bits.reshape(array.shape).view(dtype)


def decode(array: Array, compute: np.dtype[Any], bfloat16: bool) -> Array:
    """Widen a stored array to the compute dtype, exactly."""
    if not bfloat16:
        with np.errstate(invalid="ignore"):
            return array.astype(compute)
    word = array.view(np.uint16).astype(np.uint32) << 16
    return word.view(np.float32).astype(compute, copy=False)


def restore(array: Array, kind: Kind) -> Any:
    """Return a result of the engine's, stored or of the compute dtype, as an array of `kind`."""
    if array.dtype is not kind.dtype:
        same_size = array.dtype.itemsize == kind.dtype.itemsize
        array = array.view(kind.dtype) if same_size else encode(array, kind.dtype, kind.bfloat16)
    return array if kind.from_dlpack is None else kind.wrap(array)


def _from_dlpack_of(x: Any) -> Callable[[Any], Any] | None:
    """Find the ``from_dlpack`` of the library that made `x`, which is imported already."""
    if hasattr(x, "__array_namespace__"):
        return getattr(x.__array_namespace__(), "from_dlpack", None)
    for cls in type(x).__mro__:
        module = sys.modules.get(cls.__module__.partition(".")[0])
        found: Callable[[Any], Any] | None = getattr(module, "from_dlpack", None)
        if found is not None:
            return found
    return None


def _borrow(name: str, x: Any) -> tuple[Array, Kind]:
    """View a DLPack array's memory as NumPy; bfloat16 comes as its bits."""
    if not hasattr(x, "__dlpack__"):
        convertible = isinstance(x, list | tuple) or hasattr(x, "__array__")
        got = type(x).__name__ + f" (np.asarray({name}))" * convertible
        raise wrong_type(name, "a NumPy array or one that speaks DLPack", got)
    if getattr(x, "requires_grad", False):
        expected = f"an array outside autograd ({name}.detach(); backward() returns the gradients)"
        raise wrong_type(name, expected, "one that requires grad")
    try:
        device = tuple(map(int, x.__dlpack_device__()))
    except (BufferError, RuntimeError, ValueError) as error:
        raise wrong(name, "an array in CPU memory", f"{type(x).__name__} ({error})") from None
    if device[0] != _CPU:
        raise wrong(name, "an array in CPU memory", f"one on DLPack device {device}")
    bfloat16 = str(getattr(x, "dtype", "")).endswith("bfloat16")
    try:
        array = _native.bfloat16_bits(x) if bfloat16 else np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        got = f"{type(x).__name__} ({error})"
        raise wrong_type(name, "an array to share by DLPack", got) from None
    return array, Kind(array.dtype, bfloat16, _from_dlpack_of(x))


def _numpy_kind(dtype: np.dtype[Any]) -> Kind:
    kind = _NUMPY_KINDS.get(dtype)
    return Kind(dtype, dtype.name == "bfloat16") if kind is None else kind


def borrow(name: str, x: Any) -> tuple[Array, Kind]:
    """View any array as NumPy without a copy, and say how a result goes back.

    bfloat16 arrays that are not NumPy's come as uint16 bits.
    """
    if isinstance(x, np.ndarray):
        if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):
            expected = f"an array without a mask of its own ({name}.filled(0) and a mask argument)"
            raise wrong_type(name, expected, "a masked array")
        return np.asarray(x), _numpy_kind(x.dtype)
    return _borrow(name, x)


def dtype_name(array: Array, kind: Kind) -> str:
    """Name an array's element type, also of bare bfloat16 bits."""
    return "bfloat16" if kind.bfloat16 else array.dtype.name


def _regular(array: Array) -> bool:
    """Whether elements are aligned, in native byte order and whole elements apart."""
    flags = array.flags
    if not flags.aligned or not array.dtype.isnative:
        return False
    return flags.c_contiguous or all(step % array.itemsize == 0 for step in array.strides)


def _another_dtype(name: str, raw: Array, kind: Kind, element: Element, instead: str) -> TypeError:
    """Make the error for an array of another dtype, with the ways out of real numbers."""
    got = dtype_name(raw, kind)
    scalar = "ml_dtypes.bfloat16" if element.name == "bfloat16" else f"np.{element.name}"
    ours = got in _ELEMENTS
    other = instead.format(got) if ours else ""
    way = f" ({name}.astype({scalar}){other})" if ours or raw.dtype.kind in "fiub" else ""
    return wrong_type(name, element.name, got + way)


def read(
    name: str, x: Any, element: Element, instead: str = ', or dtype="{}" for the layer'
) -> tuple[Array, Array, Kind]:
    """Take an argument in: as the engine reads it, as it lies in memory, and its kind.

    `instead` is what an error about the dtype, for which it has ``{}``, names besides a cast.

    Raises
    ------
    TypeError
        If it is no array, requires grad, or is not of the dtype `element`.
    ValueError
        If it is not in CPU memory.
    """
    _, compute, stored, half = element
    if type(x) is np.ndarray and x.dtype is compute and not half:
        if x.flags.num & _DENSE == _DENSE:
            return x, x, _NUMPY_KINDS[compute]
    raw, kind = borrow(name, x)
    if dtype_name(raw, kind) != element.name:
        raise _another_dtype(name, raw, kind, element, instead)
    if half:
        regular = raw if _regular(raw) else np.array(raw, raw.dtype.newbyteorder("="))
        if not raw.dtype.isnative:  # results are in the order of bytes that the engine writes
            kind = kind._replace(dtype=regular.dtype)
        return regular.view(stored), raw, kind
    array = raw if _regular(raw) else np.array(raw, compute)
    return array, raw, kind._replace(dtype=compute)


def writable(name: str, x: Any, element: Element, shape: Shape) -> tuple[Array, Kind]:
    """View an array that a result is to be written to, or raise as `read` does."""
    raw, kind = borrow(name, x)
    plain = raw.dtype is element.compute and not element.half
    if not plain and dtype_name(raw, kind) != element.name:
        raise wrong_type(name, element.name, dtype_name(raw, kind))
    expect_writable(name, raw, shape)
    return raw, kind


def expect_writable(name: str, array: Array, shape: Shape) -> None:
    """Raise unless the engine can write to an array of some shape."""
    if array.shape != shape:
        raise wrong(name, shape, array.shape)
    if not array.flags.writeable:
        raise wrong(name, "a writable array", "a read-only one")
    if not _regular(array):
        raise wrong(name, "an aligned array in native byte order", "another one")
