"""What computes the attention of a model, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from multihead.torch.callers import Attending, attending_modules, is_put_on
from multihead.torch.fits import compute_dtype
from multihead.torch.holders import Held, attention_layers
from multihead.torch.module import MultiheadAttention
from multihead.torch.redirecting import redirects
from multihead.torch.report import Row, lines
from multihead.torch.tensors import COMPUTED, HALF


def explain(model: torch.nn.Module) -> str:
    """Say layer by layer which way a usual call takes, and why.

    Parameters
    ----------
    model : torch.nn.Module
        PyTorch's attention layers, ours, and those of Hugging Face's models are found, and modules
        whose code calls PyTorch's attention functions or has a softmax between two products.

    Returns
    -------
    str
        A line for each layer: its name, its class, who computes it, and the reason.

    Raises
    ------
    TypeError
        If `model` is not a module.

    See Also
    --------
    accelerate : Puts PyTorch's layers on the engine.
    register_transformers : Puts Hugging Face's models on the engine.

    Examples
    --------
    >>> import torch
    >>> from multihead.torch import accelerate, explain
    >>> model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2))
    >>> print(explain(model))
    0  MultiheadAttention  PyTorch: accelerate(model) puts it on the engine
    >>> accelerate(model)
    1
    >>> print(explain(model))
    0  MultiheadAttention  engine
    """
    rows = attention_rows(model)
    if not rows:
        return (
            f"{type(model).__name__}: no attention layer of PyTorch's, ours or Hugging Face's, and "
            "no code that calls PyTorch's attention functions. Calls that are hidden are reached "
            "within `with multihead.torch.attention():`, or where "
            "multihead.torch.scaled_dot_product_attention takes their place"
        )
    return lines(rows)


def attention_rows(model: torch.nn.Module) -> list[Row]:
    """Return what computes each module that attends, in the order in which they are named."""
    found = {x.name: Row(x.name, type(x.module).__name__, _way(x)) for x in attention_layers(model)}
    for row in _of_transformers(model):
        found.setdefault(row.name, row)
    for attending in attending_modules(model):
        before = found.get(attending.name)
        found[attending.name] = Row(
            attending.name, type(attending.module).__name__, _way_of_code(attending, before)
        )
    for name, module in model.named_modules():
        if name not in found and redirects(module):
            found[name] = Row(name, type(module).__name__, f"{_REDIRECTED} wherever it calls them")
    return [found[name] for name, _ in model.named_modules() if name in found]


_REDIRECTED = "engine: PyTorch's functions are redirected"


def _way_of_code(attending: Attending, before: Row | None) -> str:
    """Say what computes a module by its code, where another reason may be known before."""
    module, methods = attending.module, attending.methods
    usual = before is None or before.way.startswith(f"{_TRANSFORMERS}: sdpa")
    if redirects(module) and usual:
        return _REDIRECTED
    if before is not None:
        return before.way + (", with PyTorch's functions redirected" if redirects(module) else "")
    if not methods:
        return "its own: a softmax between two products, in code of its own"
    if is_put_on(module, methods):
        return "its own: a forward was put on the instance"
    return "PyTorch's functions: accelerate(model, functions=True) redirects them to the engine"


def _way(layer: Held) -> str:
    module = layer.module
    if "forward" in vars(module):
        return "its own: a forward was put on the instance"
    if layer.has_own_forward:
        return f"its own: {type(module).__name__} has a forward of its own"
    if layer.reader is not None:
        return f"not called: {layer.reader} reads its parameters and computes by itself"
    if not isinstance(module, MultiheadAttention):
        return "PyTorch: accelerate(model) puts it on the engine"
    why = _refused(module)
    if why is not None:
        return f"PyTorch: {why}"
    after = ", then out_proj as a module (replaced, hooked or parametrized)"
    return "engine" + after * module._out_proj_is_custom()


def _refused(module: MultiheadAttention) -> str | None:
    """Say why a usual call would be PyTorch's; None if it would not."""
    for name, x in module.named_parameters():
        if x.device.type != "cpu":
            return f"{name} is on {x.device}, and the engine is for the CPU"
        if x.dtype not in (*COMPUTED, *HALF):
            return f"{name} is of {x.dtype}"
    dtypes = {x.dtype for x in module.parameters()}
    dtype = next((x for x in HALF if x in dtypes), module.out_proj.weight.dtype)
    widths = module.embed_dim, module.kdim, module.vdim
    query, key, value = inputs = tuple(torch.zeros(1, 1, x, dtype=dtype) for x in widths)
    custom = module._out_proj_is_custom()
    tensors = module._tensors(inputs, (None, None), custom)
    if compute_dtype(module, (query, key, value), tensors, False) is None:
        return "its parameters are of other shapes, dtypes or classes than it was made with"
    return None


_TRANSFORMERS = "transformers"


def _of_transformers(model: torch.nn.Module) -> Iterator[Row]:
    if "transformers.modeling_utils" not in sys.modules:
        return
    from multihead.torch.hugging_face import NAME
    from multihead.torch.support import is_attention, refusal

    configs: dict[str, Any] = {}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if not hasattr(config, "_attn_implementation"):  # that of the module around it
            config = configs.get(name.rpartition(".")[0])
        configs[name] = config
        chosen = getattr(config, "_attn_implementation", None)
        kind: Any = type(module)
        if chosen is None or not is_attention(kind):
            continue
        of_config: Any = type(config)
        why = refusal(of_config, NAME)
        if chosen == NAME:
            way = f"engine: {NAME}"
        elif why is not None:
            way = f"{_TRANSFORMERS}: {chosen}; {why}"
        else:
            way = (
                f"{_TRANSFORMERS}: {chosen}; register_transformers() and "
                f'model.set_attn_implementation("{NAME}") put it on the engine'
            )
        yield Row(name, kind.__name__, way)
