"""The four functions under their C names, and a filter that destroys itself."""

from __future__ import annotations

import ctypes
import operator
from ctypes import byref, c_size_t
from types import TracebackType
from typing import Any, TypeAlias

from multihead.arrays import borrow
from multihead.bnns.library import LIBRARY
from multihead.bnns.structs import (
    FilterParameters,
    LayerParametersMultiheadAttention,
    MHAProjectionParameters,
    NDArrayDescriptor,
)
from multihead.checks import wrong

Address: TypeAlias = Any  # an array, an integer or None
Size: TypeAlias = c_size_t | None


class BNNSError(ValueError):
    """A call was refused; the message names the parameter, what was expected and what came.

    Examples
    --------
    >>> from multihead import bnns
    >>> try:
    ...     bnns.BNNSFilterCreateLayerMultiheadAttention(None)
    ... except bnns.BNNSError as error:
    ...     print(error)
    BNNSFilterCreateLayerMultiheadAttention: layer_params: expected an address, got NULL
    """


def last_error() -> str:
    """Return why this thread's last call failed; empty if it did not.

    Examples
    --------
    >>> from multihead import bnns
    >>> bnns.BNNSFilterCreateLayerMultiheadAttention(None, raw=True)
    >>> bnns.last_error()
    'BNNSFilterCreateLayerMultiheadAttention: layer_params: expected an address, got NULL'
    """
    found: bytes = LIBRARY.multihead_last_error()
    return found.decode()


def _address(x: Address, writes_to: str = "") -> int | None:
    """Return where an argument lies; refuse what is read-only if it is to be written to."""
    if x is None:
        return None
    if isinstance(x, ctypes.c_void_p):
        return x.value
    if isinstance(x, ctypes.Array):
        return ctypes.addressof(x)
    if hasattr(x, "__index__") and not hasattr(x, "__dlpack__"):
        return operator.index(x)
    array = borrow(writes_to or "array", x)[0]
    if writes_to and not array.flags.writeable:
        raise wrong(writes_to, "a writable array", "a read-only one")
    address: int = array.ctypes.data
    return address


def _written(name: str, x: ctypes.Structure | None) -> Any:
    """Return a pointer to a gradient's struct; refuse arrays in it that are read-only."""
    if isinstance(x, MHAProjectionParameters):
        for part, d in x.__dict__.get("_kept", {}).items():
            # what comes in through the output's target is read
            if name != "output_param_delta" or part != "target_desc":
                _written(f"{name}.{part}", d)
    elif isinstance(x, NDArrayDescriptor) and x.data and not getattr(x, "_writable", True):
        raise wrong(name, "a writable array", "a read-only one")
    return _pointer(x)


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

    Examples
    --------
    >>> import numpy as np
    >>> from multihead import bnns
    >>> w = bnns.NDArrayDescriptor.from_array(np.ones((4, 2, 2), np.float32))
    >>> x = bnns.NDArrayDescriptor.from_array(np.ones((3, 4), np.float32), data=False)
    >>> side = bnns.MHAProjectionParameters(target_desc=x, weights=w)
    >>> w_out = bnns.NDArrayDescriptor.from_array(np.ones((4, 4), np.float32))
    >>> output = bnns.MHAProjectionParameters(target_desc=x, weights=w_out)
    >>> layer = bnns.LayerParametersMultiheadAttention(
    ...     query=side, key=side, value=side, output=output
    ... )
    >>> with bnns.Filter(layer) as made:
    ...     made.handle is not None
    True
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

    With ``raw=True`` a failure returns None instead of raising `BNNSError`. `Filter` creates and
    destroys.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead import bnns
    >>> w = bnns.NDArrayDescriptor.from_array(np.ones((4, 2, 2), np.float32))
    >>> x = bnns.NDArrayDescriptor.from_array(np.ones((3, 4), np.float32), data=False)
    >>> side = bnns.MHAProjectionParameters(target_desc=x, weights=w)
    >>> w_out = bnns.NDArrayDescriptor.from_array(np.ones((4, 4), np.float32))
    >>> output = bnns.MHAProjectionParameters(target_desc=x, weights=w_out)
    >>> layer = bnns.LayerParametersMultiheadAttention(
    ...     query=side, key=side, value=side, output=output
    ... )
    >>> handle = bnns.BNNSFilterCreateLayerMultiheadAttention(layer)
    >>> bnns.BNNSFilterDestroy(handle)
    """
    made: int | None = LIBRARY.multihead_BNNSFilterCreateLayerMultiheadAttention(
        _pointer(layer_params), _pointer(filter_params)
    )
    if made is None and not raw:
        raise BNNSError(last_error())
    return made


def BNNSFilterDestroy(filter_: int | None) -> None:  # noqa: N802 - the C name
    """Destroy a filter; None does nothing.

    Examples
    --------
    >>> from multihead import bnns
    >>> bnns.BNNSFilterDestroy(None)
    """
    LIBRARY.multihead_BNNSFilterDestroy(filter_)


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

    Examples
    --------
    >>> import numpy as np
    >>> from multihead import bnns
    >>> w = bnns.NDArrayDescriptor.from_array(np.ones((4, 2, 2), np.float32))
    >>> x = bnns.NDArrayDescriptor.from_array(np.ones((3, 4), np.float32), data=False)
    >>> side = bnns.MHAProjectionParameters(target_desc=x, weights=w)
    >>> w_out = bnns.NDArrayDescriptor.from_array(np.ones((4, 4), np.float32))
    >>> output = bnns.MHAProjectionParameters(target_desc=x, weights=w_out)
    >>> layer = bnns.LayerParametersMultiheadAttention(
    ...     query=side, key=side, value=side, output=output
    ... )
    >>> tokens, out = np.eye(3, 4, dtype=np.float32), np.empty((3, 4), np.float32)
    >>> memory, no_cache = (tokens, 0), (None, None, None, None)
    >>> with bnns.Filter(layer) as made:
    ...     bnns.BNNSApplyMultiheadAttention(
    ...         made, 1, tokens, 0, *memory, None, 0, *memory, out, 0, None, *no_cache
    ...     )
    0
    >>> out[0].tolist()
    [4.0, 4.0, 4.0, 4.0]
    """
    return _checked(
        LIBRARY.multihead_BNNSApplyMultiheadAttention(
            *(_handle(F), batch_size, _address(query), query_stride, _address(key), key_stride),
            *(_pointer(key_mask), key_mask_stride, _address(value), value_stride),
            *(_address(output, "output"), output_stride, _pointer(add_to_attention)),
            *(_pointer(backprop_cache_size), _address(backprop_cache, "backprop_cache")),
            *(_pointer(workspace_size), _address(workspace, "workspace")),
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

    Examples
    --------
    >>> import numpy as np
    >>> from multihead import bnns
    >>> w = bnns.NDArrayDescriptor.from_array(np.ones((4, 2, 2), np.float32))
    >>> x = bnns.NDArrayDescriptor.from_array(np.ones((3, 4), np.float32), data=False)
    >>> side = bnns.MHAProjectionParameters(target_desc=x, weights=w)
    >>> w_out = bnns.NDArrayDescriptor.from_array(np.ones((4, 4), np.float32))
    >>> output = bnns.MHAProjectionParameters(target_desc=x, weights=w_out)
    >>> layer = bnns.LayerParametersMultiheadAttention(
    ...     query=side, key=side, value=side, output=output
    ... )
    >>> tokens, d_value = np.eye(3, 4, dtype=np.float32), np.empty((3, 4), np.float32)
    >>> come_in = bnns.NDArrayDescriptor.from_array(np.ones((3, 4), np.float32))
    >>> d_output = bnns.MHAProjectionParameters(target_desc=come_in)
    >>> to_value = bnns.NDArrayDescriptor.from_array(d_value)
    >>> of_value = bnns.MHAProjectionParameters(target_desc=to_value)
    >>> memory, no_cache = (tokens, 0), (0, None, None, None)
    >>> with bnns.Filter(layer) as made:
    ...     bnns.BNNSApplyMultiheadAttentionBackward(
    ...         *(made, 1, *memory, None, *memory, None, 0, None, *memory, of_value, None),
    ...         *(None, None, None, 0, d_output, *no_cache),
    ...     )
    0
    >>> d_value[0].tolist()
    [16.0, 16.0, 16.0, 16.0]
    """
    return _checked(
        LIBRARY.multihead_BNNSApplyMultiheadAttentionBackward(
            *(_handle(F), batch_size, _address(query), query_stride),
            *(_written("query_param_delta", query_param_delta), _address(key), key_stride),
            *(_pointer(key_mask), key_mask_stride, _written("key_param_delta", key_param_delta)),
            *(_address(value), value_stride, _written("value_param_delta", value_param_delta)),
            *(_pointer(add_to_attention), _written("key_attn_bias_delta", key_attn_bias_delta)),
            *(
                _written("value_attn_bias_delta", value_attn_bias_delta),
                _address(output),
                output_stride,
            ),
            *(
                _written("output_param_delta", output_param_delta),
                backprop_cache_size,
                _address(backprop_cache),
            ),
            *(_pointer(workspace_size), _address(workspace, "workspace")),
        ),
        raw,
    )
