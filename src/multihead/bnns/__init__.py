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

from multihead.bnns.functions import (
    BNNSApplyMultiheadAttention,
    BNNSApplyMultiheadAttentionBackward,
    BNNSError,
    BNNSFilterCreateLayerMultiheadAttention,
    BNNSFilterDestroy,
    Filter,
    last_error,
)
from multihead.bnns.library import include_dir, library_path
from multihead.bnns.structs import (
    ALLOCATE,
    FREE,
    DataLayout,
    DataType,
    FilterFlags,
    FilterParameters,
    LayerParametersMultiheadAttention,
    MHAProjectionParameters,
    NDArrayDescriptor,
    NDArrayFlags,
)

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
