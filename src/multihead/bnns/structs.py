"""The C structs and constants, and descriptors over arrays."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_float, c_int, c_size_t, c_uint32, c_void_p
from enum import IntEnum
from typing import Any

from multihead.arrays import borrow
from multihead.checks import wrong, wrong_type

MAX_TENSOR_DIMENSION = 8


class NDArrayFlags(IntEnum):
    """Whether a gradient replaces what is in its array, or is added to it.

    Examples
    --------
    >>> NDArrayFlags.BackpropAccumulate.value
    1
    """

    BackpropSet = 0
    BackpropAccumulate = 1


class FilterFlags(IntEnum):
    """Flags of `FilterParameters`: `UseClientPtr` reads the weights at each call.

    Examples
    --------
    >>> FilterParameters(flags=FilterFlags.UseClientPtr).flags
    1
    """

    UseClientPtr = 1


class DataType(IntEnum):
    """Element types; a layer takes the three floats, and Boolean for masks.

    Examples
    --------
    >>> hex(DataType.Float32)
    '0x10020'
    """

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
    """Where the element of an index lies; ``bnns.h`` has the formulas.

    Examples
    --------
    >>> hex(DataLayout.RowMajorMatrix)
    '0x20000'
    """

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


class _Keeper(ctypes.Structure):
    """A struct that keeps alive what its fields were set to, and so the arrays behind them."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_"):
            self.__dict__.setdefault("_kept", {})[name] = value


class NDArrayDescriptor(_Keeper):
    """``BNNSNDArrayDescriptor``: an array's layout, sizes, strides (in elements) and data.

    Examples
    --------
    >>> import numpy as np
    >>> d = NDArrayDescriptor.from_array(np.zeros((2, 3), np.float32))
    >>> DataType(d.data_type).name, d.data is not None
    ('Float32', True)
    """

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
        if not array.dtype.isnative:
            raise wrong("a", "an array in native byte order", array.dtype.str)
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
        d._writable = bool(array.flags.writeable)
        return d


class MHAProjectionParameters(_Keeper):
    """``BNNSMHAProjectionParameters``: a projection's target, weights and bias, or gradients.

    Examples
    --------
    >>> import numpy as np
    >>> w = NDArrayDescriptor.from_array(np.zeros((4, 2, 2), np.float32))
    >>> projection = MHAProjectionParameters(weights=w)  # without a bias
    >>> projection.weights.size[:3], projection.bias.data
    ([4, 2, 2], None)
    """

    _fields_ = (
        ("target_desc", NDArrayDescriptor),
        ("weights", NDArrayDescriptor),
        ("bias", NDArrayDescriptor),
    )


class LayerParametersMultiheadAttention(_Keeper):
    """``BNNSLayerParametersMultiheadAttention``: a layer.

    Examples
    --------
    >>> layer = LayerParametersMultiheadAttention(add_zero_attn=True, dropout=0.5, seed=3)
    >>> layer.dropout, layer.query.bias.data
    (0.5, None)
    """

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


class FilterParameters(_Keeper):
    """``BNNSFilterParameters``: flags, threads (0: all), memory functions (`ALLOCATE`, `FREE`).

    Examples
    --------
    >>> FilterParameters(n_threads=2).n_threads
    2
    """

    _fields_ = (
        ("flags", c_uint32),
        ("n_threads", c_size_t),
        ("alloc_memory", ALLOCATE),
        ("free_memory", FREE),
    )
