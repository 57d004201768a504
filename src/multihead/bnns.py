"""Apple's BNNS multi-head attention API, from Python: the C structs and functions of ``bnns.h``.

The four functions have their C names and parameters. Where C takes an address, they take an array
(NumPy, or any CPU array that speaks DLPack), an integer, or None for NULL; where C takes a pointer
to a struct, the struct or None. `docs/bnns.md` describes every parameter.

Examples
--------
One head on one sequence; `Filter` destroys itself:

>>> import numpy as np
>>> from multihead import bnns
>>> x, w = np.ones((3, 4), np.float32), np.eye(4, dtype=np.float32).reshape(4, 4, 1)
>>> def projection(weights):
...     return bnns.MHAProjectionParameters(
...         target_desc=bnns.NDArrayDescriptor.from_array(x, data=False),
...         weights=bnns.NDArrayDescriptor.from_array(weights),
...     )
>>> layer = bnns.LayerParametersMultiheadAttention(
...     query=projection(w), key=projection(w), value=projection(w), output=projection(w[:, :, 0])
... )
>>> out = np.empty_like(x)
>>> with bnns.Filter(layer) as filter_:
...     bnns.BNNSApplyMultiheadAttention(
...         filter_, 1, x, 12, x, 12, None, 0, x, 12, out, 12, None, None, None, None, None
...     )
0
>>> np.allclose(out, 1)
True
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_bool, c_float, c_int, c_size_t, c_uint32, c_void_p
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from multihead.arrays import borrow
from multihead.checks import wrong, wrong_type

__all__ = [
    "ALLOCATE",
    "FREE",
    "BNNSApplyMultiheadAttention",
    "BNNSApplyMultiheadAttentionBackward",
    "BNNSError",
    "BNNSFilterCreateLayerMultiheadAttention",
    "BNNSFilterDestroy",
    "DataLayout",
    "DataType",
    "Filter",
    "FilterFlags",
    "FilterParameters",
    "LayerParametersMultiheadAttention",
    "MHAProjectionParameters",
    "NDArrayDescriptor",
    "NDArrayFlags",
    "include_dir",
    "last_error",
    "library_path",
]

MAX_TENSOR_DIMENSION = 8


class BNNSError(ValueError):
    """A call was refused; the message names the parameter, what was expected and what came."""


class NDArrayFlags(IntEnum):
    """Whether a gradient replaces what is in its array, or is added to it."""

    BackpropSet = 0
    BackpropAccumulate = 1


class FilterFlags(IntEnum):
    """Flags of `FilterParameters`: `UseClientPtr` reads the weights at each call."""

    UseClientPtr = 1


class DataType(IntEnum):
    """Element types; a layer takes the three floats, and Boolean for masks."""

    Float16 = 0x10010
    Float32 = 0x10020
    BFloat16 = 0x18010
    Int8 = 0x20008
    Int16 = 0x20010
    Int32 = 0x20020
    Int64 = 0x20040
    UInt8 = 0x40008
    UInt16 = 0x40010
    UInt32 = 0x40020
    UInt64 = 0x40040
    Boolean = 0x100008


class DataLayout(IntEnum):
    """Where the element of an index lies; ``bnns.h`` has the formulas."""

    Vector = 0x10000
    OneDLastMajor = 0x18000
    OneDFirstMajor = 0x18001
    RowMajorMatrix = 0x20000
    ColumnMajorMatrix = 0x20001
    TwoDLastMajor = 0x28000
    TwoDFirstMajor = 0x28001
    SNE = 0x30001
    NSE = 0x30002
    MHA_DHK = 0x30003
    ThreeDLastMajor = 0x38000
    ThreeDFirstMajor = 0x38001
    FourDLastMajor = 0x48000
    FourDFirstMajor = 0x48001


# which index each entry of size[] and of stride[] belongs to
_LAYOUTS: dict[DataLayout, tuple[tuple[int, ...], tuple[int, ...]]] = {
    DataLayout.Vector: ((0,), (0,)),
    DataLayout.OneDLastMajor: ((0,), (0,)),
    DataLayout.OneDFirstMajor: ((0,), (0,)),
    DataLayout.RowMajorMatrix: ((1, 0), (1, 0)),
    DataLayout.ColumnMajorMatrix: ((0, 1), (0, 1)),
    DataLayout.TwoDLastMajor: ((0, 1), (0, 1)),
    DataLayout.TwoDFirstMajor: ((0, 1), (1, 0)),
    DataLayout.SNE: ((0, 1, 2), (0, 1, 2)),
    DataLayout.NSE: ((0, 1, 2), (0, 1, 2)),
    DataLayout.MHA_DHK: ((0, 1, 2), (1, 2, 0)),
    DataLayout.ThreeDLastMajor: ((0, 1, 2), (0, 1, 2)),
    DataLayout.ThreeDFirstMajor: ((0, 1, 2), (2, 1, 0)),
    DataLayout.FourDLastMajor: ((0, 1, 2, 3), (0, 1, 2, 3)),
    DataLayout.FourDFirstMajor: ((0, 1, 2, 3), (3, 2, 1, 0)),
}
_USUAL = {
    1: DataLayout.Vector,
    2: DataLayout.TwoDFirstMajor,
    3: DataLayout.ThreeDFirstMajor,
    4: DataLayout.FourDFirstMajor,
}
_DATA_TYPES = {
    "float16": DataType.Float16,
    "float32": DataType.Float32,
    "bfloat16": DataType.BFloat16,
    "bool": DataType.Boolean,
}


class NDArrayDescriptor(ctypes.Structure):
    """``BNNSNDArrayDescriptor``: an array's layout, sizes, strides (in elements) and data."""

    _fields_ = (
        ("flags", c_uint32),
        ("layout", c_uint32),
        ("size", c_size_t * MAX_TENSOR_DIMENSION),
        ("stride", c_size_t * MAX_TENSOR_DIMENSION),
        ("data", c_void_p),
        ("data_type", c_uint32),
        ("table_data", c_void_p),
        ("table_data_type", c_uint32),
        ("data_scale", c_float),
        ("data_bias", c_float),
    )

    @classmethod
    def from_array(
        cls,
        a: Any,
        layout: DataLayout | None = None,
        *,
        flags: NDArrayFlags = NDArrayFlags.BackpropSet,
        data: bool = True,
    ) -> NDArrayDescriptor:
        """Describe an array of 1 to 4 axes without a copy; the descriptor keeps it alive.

        Parameters
        ----------
        a : array
            float16, float32, bfloat16 or bool, in CPU memory.
        layout : DataLayout, optional
            One of as many dimensions as `a` has axes; default: the one in which the last axis is
            contiguous. Sizes and strides are `a`'s, whatever the layout.
        flags : NDArrayFlags
            Of a gradient.
        data : bool
            Whether `data` is the array's address, or NULL.

        Raises
        ------
        TypeError
            If `a` is no array of these types.
        ValueError
            If the layout does not fit, or strides are negative or not whole elements.

        Examples
        --------
        >>> import numpy as np
        >>> d = NDArrayDescriptor.from_array(np.zeros((2, 3), np.float32))
        >>> DataLayout(d.layout).name, d.size[:2], d.stride[:2]
        ('TwoDFirstMajor', [2, 3], [1, 3])
        """
        array, kind = borrow("a", a)
        name = "bfloat16" if kind.bfloat16 else array.dtype.name
        if name not in _DATA_TYPES:
            raise wrong_type("a", "float16, float32, bfloat16 or bool", name)
        if layout is None:
            if array.ndim not in _USUAL:
                raise wrong("a", "1 to 4 axes", array.shape)
            layout = _USUAL[array.ndim]
        sizes_of, strides_of = _LAYOUTS[DataLayout(layout)]
        if len(sizes_of) != array.ndim:
            raise wrong("layout", f"one of {array.ndim} dimensions", DataLayout(layout).name)
        steps = []
        contiguous = array.itemsize  # NumPy's strides of an axis of one, or none, say nothing
        for axis in reversed(range(array.ndim)):
            counts = array.shape[axis] > 1 and array.size > 0
            step = array.strides[axis] if counts else contiguous
            if step <= 0 or step % array.itemsize:
                raise wrong("a", "positive strides of whole elements", array.strides)
            steps.append(step // array.itemsize)
            contiguous = step * max(array.shape[axis], 1)
        steps.reverse()
        d = cls(flags=flags, layout=layout, data_type=_DATA_TYPES[name])
        for slot, axis in enumerate(sizes_of):
            d.size[slot] = array.shape[axis]
        for slot, axis in enumerate(strides_of):
            d.stride[slot] = steps[axis]
        d.data = array.ctypes.data if data else None
        d._keeps = a
        return d


class MHAProjectionParameters(ctypes.Structure):
    """``BNNSMHAProjectionParameters``: a projection's target, weights and bias, or gradients."""

    _fields_ = (
        ("target_desc", NDArrayDescriptor),
        ("weights", NDArrayDescriptor),
        ("bias", NDArrayDescriptor),
    )


class LayerParametersMultiheadAttention(ctypes.Structure):
    """``BNNSLayerParametersMultiheadAttention``: a layer."""

    _fields_ = (
        ("query", MHAProjectionParameters),
        ("key", MHAProjectionParameters),
        ("value", MHAProjectionParameters),
        ("add_zero_attn", c_bool),
        ("key_attn_bias", NDArrayDescriptor),
        ("value_attn_bias", NDArrayDescriptor),
        ("output", MHAProjectionParameters),
        ("dropout", c_float),
        ("seed", c_uint32),
    )


ALLOCATE = ctypes.CFUNCTYPE(c_int, POINTER(c_void_p), c_size_t, c_size_t)
FREE = ctypes.CFUNCTYPE(None, c_void_p)


class FilterParameters(ctypes.Structure):
    """``BNNSFilterParameters``: flags, threads (0: all), memory functions (`ALLOCATE`, `FREE`)."""

    _fields_ = (
        ("flags", c_uint32),
        ("n_threads", c_size_t),
        ("alloc_memory", ALLOCATE),
        ("free_memory", FREE),
    )


Address: TypeAlias = Any  # an array, an integer or None
Size: TypeAlias = c_size_t | None
_PACKAGE = Path(__file__).parent


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
    library.BNNSFilterCreateLayerMultiheadAttention.restype = c_void_p
    library.BNNSFilterCreateLayerMultiheadAttention.argtypes = (
        POINTER(LayerParametersMultiheadAttention),
        POINTER(FilterParameters),
    )
    library.BNNSFilterDestroy.restype = None
    library.BNNSFilterDestroy.argtypes = (c_void_p,)
    library.BNNSApplyMultiheadAttention.argtypes = (
        *(c_void_p, size, *data, *data, descriptor, size, *data, *data, descriptor),
        *(POINTER(size), address, POINTER(size), address),
    )
    library.BNNSApplyMultiheadAttentionBackward.argtypes = (
        *(c_void_p, size, *data, projection, *data, descriptor, size, projection),
        *(*data, projection, descriptor, descriptor, descriptor, *data, projection),
        *(size, address, POINTER(size), address),
    )
    library.multihead_last_error.restype = ctypes.c_char_p
    return library


_library = _load()


def last_error() -> str:
    """Return why this thread's last call failed; empty if it did not."""
    found: bytes = _library.multihead_last_error()
    return found.decode()


def _address(x: Address) -> int | None:
    if x is None or isinstance(x, int):
        return x
    if isinstance(x, ctypes.Array):
        return ctypes.addressof(x)
    address: int = borrow("array", x)[0].ctypes.data
    return address


def _pointer(x: ctypes.Structure | c_size_t | None) -> Any:
    return None if x is None else byref(x)


def _handle(filter_: Filter | int | None) -> int | None:
    return filter_.handle if isinstance(filter_, Filter) else filter_


def _checked(status: int, raw: bool) -> int:
    if status != 0 and not raw:
        raise BNNSError(last_error())
    return status


class Filter:
    """A filter that destroys itself: a context manager around create and destroy.

    Parameters
    ----------
    layer_params : LayerParametersMultiheadAttention
    filter_params : FilterParameters, optional

    Raises
    ------
    BNNSError
        If the layer's descriptors do not fit together.
    """

    def __init__(
        self,
        layer_params: LayerParametersMultiheadAttention,
        filter_params: FilterParameters | None = None,
    ) -> None:
        self._keeps = (layer_params, filter_params)  # the client's weights, the memory functions
        self.handle = BNNSFilterCreateLayerMultiheadAttention(layer_params, filter_params)

    def destroy(self) -> None:
        """Destroy the filter; doing so twice is harmless."""
        handle, self.handle = self.handle, None
        BNNSFilterDestroy(handle)

    def __enter__(self) -> Filter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.destroy()

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self.destroy()


def BNNSFilterCreateLayerMultiheadAttention(  # noqa: N802 - the C name
    layer_params: LayerParametersMultiheadAttention | None,
    filter_params: FilterParameters | None = None,
    *,
    raw: bool = False,
) -> int | None:
    """Create a filter and return its handle; destroy it with `BNNSFilterDestroy`.

    With ``raw=True`` a failure returns None instead of raising `BNNSError`.
    """
    made: int | None = _library.BNNSFilterCreateLayerMultiheadAttention(
        _pointer(layer_params), _pointer(filter_params)
    )
    if made is None and not raw:
        raise BNNSError(last_error())
    return made


def BNNSFilterDestroy(filter_: int | None) -> None:  # noqa: N802 - the C name
    """Destroy a filter; None does nothing."""
    _library.BNNSFilterDestroy(filter_)


def BNNSApplyMultiheadAttention(  # noqa: N802 - the C name
    F: Filter | int | None,
    batch_size: int,
    query: Address,
    query_stride: int,
    key: Address,
    key_stride: int,
    key_mask: NDArrayDescriptor | None,
    key_mask_stride: int,
    value: Address,
    value_stride: int,
    output: Address,
    output_stride: int,
    add_to_attention: NDArrayDescriptor | None,
    backprop_cache_size: Size,
    backprop_cache: Address,
    workspace_size: Size,
    workspace: Address,
    *,
    raw: bool = False,
) -> int:
    """Apply a filter forward; the parameters are those of C, strides between batch items included.

    A size (``ctypes.c_size_t``) whose buffer is None asks for it. Returns 0; a failure raises
    `BNNSError`, or returns -1 with ``raw=True``, and writes nothing.
    """
    return _checked(
        _library.BNNSApplyMultiheadAttention(
            *(_handle(F), batch_size, _address(query), query_stride, _address(key), key_stride),
            *(_pointer(key_mask), key_mask_stride, _address(value), value_stride),
            *(_address(output), output_stride, _pointer(add_to_attention)),
            *(_pointer(backprop_cache_size), _address(backprop_cache)),
            *(_pointer(workspace_size), _address(workspace)),
        ),
        raw,
    )


def BNNSApplyMultiheadAttentionBackward(  # noqa: N802 - the C name
    F: Filter | int | None,
    batch_size: int,
    query: Address,
    query_stride: int,
    query_param_delta: MHAProjectionParameters | None,
    key: Address,
    key_stride: int,
    key_mask: NDArrayDescriptor | None,
    key_mask_stride: int,
    key_param_delta: MHAProjectionParameters | None,
    value: Address,
    value_stride: int,
    value_param_delta: MHAProjectionParameters | None,
    add_to_attention: NDArrayDescriptor | None,
    key_attn_bias_delta: NDArrayDescriptor | None,
    value_attn_bias_delta: NDArrayDescriptor | None,
    output: Address,
    output_stride: int,
    output_param_delta: MHAProjectionParameters | None,
    backprop_cache_size: int,
    backprop_cache: Address,
    workspace_size: Size,
    workspace: Address,
    *,
    raw: bool = False,
) -> int:
    """Apply a filter backward: gradients of everything that a `*_delta` has an address for.

    ``output_param_delta.target_desc`` is the gradient that comes in. Returns 0; a failure raises
    `BNNSError`, or returns -1 with ``raw=True``, and writes nothing.
    """
    return _checked(
        _library.BNNSApplyMultiheadAttentionBackward(
            *(_handle(F), batch_size, _address(query), query_stride),
            *(_pointer(query_param_delta), _address(key), key_stride),
            *(_pointer(key_mask), key_mask_stride, _pointer(key_param_delta)),
            *(_address(value), value_stride, _pointer(value_param_delta)),
            *(_pointer(add_to_attention), _pointer(key_attn_bias_delta)),
            *(_pointer(value_attn_bias_delta), _address(output), output_stride),
            *(_pointer(output_param_delta), backprop_cache_size, _address(backprop_cache)),
            *(_pointer(workspace_size), _address(workspace)),
        ),
        raw,
    )


def compile_flags() -> str:
    """Return the compiler's flags for a program that includes ``<multihead/bnns.h>``."""
    return f"-I{include_dir()}"


def link_flags() -> list[str]:
    """Return the linker's flags for a program that uses the library where it lies."""
    folder = library_path().parent
    return [f"-L{folder}", "-lmultihead", f"-Wl,-rpath,{folder}"]
