"""What tensors are, and how the engine reads them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from multihead import _native

COMPUTED = (torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)
NARROW = (torch.float32, *HALF)  # what autocast casts, and what goes together in one call
NAMES = {torch.float32: "float32", torch.float64: "float64"}
NAMES |= {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_NAMED = {name: dtype for dtype, name in NAMES.items()}

_STAND_INS = (FakeTensor, FunctionalTensor)


def _exchange() -> bool:
    """Let the engine read tensors through PyTorch's own C functions, where it has them."""
    table = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    return table is not None and _native.exchange_with(torch.Tensor, table)


_DIRECT = _exchange()


def dtype_of(call: Any) -> torch.dtype:
    """Return what a call is computed in, and its results are of."""
    return _NAMED[call.options.dtype]


def statistics_dtype(call: Any) -> torch.dtype:
    """Return the dtype of what the engine keeps of a call's scores."""
    return torch.float64 if call.options.dtype == "float64" else torch.float32


def in_float32(way: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let a way to compute calls compute those of half precision in float32, as the engine does."""

    @functools.wraps(way)
    def wide(call: Any) -> Any:
        dtype = dtype_of(call)
        if dtype not in HALF:
            return way(call)
        floats = [
            x.to(torch.float32) if x is not None and x.is_floating_point() else x
            for x in call.tensors
        ]
        found = way(call._replace(tensors=call.tensors._make(floats)))
        if isinstance(found, torch.Tensor):
            return found.to(dtype)
        return tuple(x if x is None else x.to(dtype) for x in found)

    return wide


_Tensors = TypeVar("_Tensors", bound=tuple[Any, ...])


def engine_reads(tensors: _Tensors) -> _Tensors:
    """Return the tensors, or arrays of the same memory, as the engine can read them."""
    if _DIRECT:
        return tensors
    # not by way of numpy(): the memory could not be freed any more
    arrays = [None if x is None else np.from_dlpack(x.detach()) for x in tensors]
    kind: Any = type(tensors)
    read: _Tensors = kind._make(arrays) if hasattr(kind, "_make") else kind(arrays)
    return read


def readable(x: torch.Tensor) -> bool:
    """Whether a tensor is a usual one in CPU memory, or stands for one while PyTorch traces."""
    kind = type(x)
    compiling = torch.compiler.is_compiling()
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        layout, on_cpu = x.layout, x.is_cpu
    else:
        jagged = x.is_nested and x.layout == torch.jagged
        if not jagged and not isinstance(x, _STAND_INS):
            return False
        layout, on_cpu = x.layout, x.device.type == "cpu"
    if not on_cpu or (layout != torch.strided and layout != torch.jagged):
        return False
    # operations receive settled tensors
    return compiling or not (x.is_neg() or x._is_zerotensor())


def batched(x: torch.Tensor | None) -> bool:
    """Whether a gradient that came stands for several at once."""
    if x is None or torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    return bool(functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x))


def kept_masks(tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Copy boolean masks, which may be changed before backward, as PyTorch's layer lets them be.

    What is broadcast stays broadcast: only its own elements are copied.
    """
    kept = list(tensors)
    for i, x in enumerate(tensors):
        if x is not None and x.dtype == torch.bool:
            own = [slice(0, 1) if step == 0 else slice(None) for step in x.stride()]
            kept[i] = x[tuple(own)].clone().expand(x.shape)
    return kept


def unpacked(
    saved: Sequence[torch.Tensor | None], shapes: Sequence[torch.Size | None]
) -> list[torch.Tensor | None]:
    """Return saved tensors as the engine can read them: hooks may have changed what they are.

    Raises
    ------
    RuntimeError
        If they are no longer of floating dtypes that go together, or of their shapes.
    """
    tensors = [settled(x) for x in saved]
    found = [None if x is None else x.shape for x in tensors]
    if found != list(shapes):
        raise RuntimeError(f"saved tensors: expected shapes {list(shapes)}, got {found}")
    dtypes = {x.dtype for x in tensors if x is not None and x.is_floating_point()}
    if len(dtypes) > 1 and not dtypes <= set(NARROW):
        raise RuntimeError(f"saved tensors: expected one dtype, got {sorted(map(str, dtypes))}")
    return tensors


def settled(x: torch.Tensor | None) -> torch.Tensor | None:
    """Return a tensor whose memory says what it is: no sign to be turned, no zeros left out."""
    if x is None or torch.compiler.is_compiling():  # operations receive settled tensors
        return x
    if not (x.is_neg() or x._is_zerotensor()):
        return x
    return (
        torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        if x._is_zerotensor()
        else x.resolve_neg()
    )
