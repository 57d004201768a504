"""What knows PyTorch's layer by its exact type, or by its source, and not ours: say so."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

_RESTORE = "call multihead.torch.restore(model) before"


def refuse_hook(hook: Any) -> None:
    """Raise for hooks of Opacus: it has a layer in place of exactly PyTorch's.

    Raises
    ------
    TypeError
    """
    if (getattr(hook, "__module__", None) or "").split(".")[0] == "opacus":
        raise TypeError(
            "Opacus replaces torch.nn.MultiheadAttention by its exact type, and would take this "
            f"layer for one with a single input: {_RESTORE} ModuleValidator.fix(model)"
        )


def refuse_quantized(query: Any) -> None:
    """Raise for quantized tensors: torch.ao.quantization replaces exactly PyTorch's layer.

    Raises
    ------
    TypeError
    """
    if isinstance(query, torch.Tensor) and query.is_quantized:
        raise TypeError(
            f"query: expected no quantized tensor, got {query.dtype}: torch.ao.quantization "
            f"replaces torch.nn.MultiheadAttention by its exact type: {_RESTORE} prepare(model)"
        )


def refuse_script() -> NoReturn:
    """Raise for `torch.jit.script`.

    Raises
    ------
    NotImplementedError
    """
    raise NotImplementedError(
        "torch.jit.script compiles no layer of multihead.torch: "
        f"{_RESTORE} torch.jit.script(model), or use torch.export"
    )
