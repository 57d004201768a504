"""A scope in which PyTorch's attention functions are ours: `multihead.torch.attention`."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from multihead.torch.dispatch import transformed
from multihead.torch.functional import scaled_dot_product_attention
from multihead.torch.layer_function import multi_head_attention_forward

# as PyTorch names them to a mode, whatever has taken their place in torch.nn.functional
SCALED_DOT_PRODUCT = torch._C._nn.scaled_dot_product_attention
MULTI_HEAD = torch.nn.functional.multi_head_attention_forward

# what runs backward, and PyTorch's way to call it without asking the mode again
_METHOD, _BACKWARD, _GRAD = torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad
_RUN = getattr(torch._C, "_skip_one_hop_torch_function", None)


class Redirected(TorchFunctionMode):
    """The scope as PyTorch has them: of one thread, and followed by its compiler.

    That one knows to enter and leave it as long as both are PyTorch's own methods.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of PyTorch's, or ours in its place; within, the scope is left."""
        kwargs = kwargs or {}
        if func is SCALED_DOT_PRODUCT:
            if not _pytorch_s(types):
                return scaled_dot_product_attention(*args, **kwargs)
        elif func is MULTI_HEAD and not _pytorch_s(types):
            found = multi_head_attention_forward(*args, **kwargs)
            if found is not None:
                return found
        elif isinstance(func, FunctionType):
            if torch.compiler.is_compiling():
                if func.__module__ == "torch._tensor":  # known by its name, not by its code
                    return getattr(args[0], func.__name__)(*args[1:], **kwargs)
            elif _RUN is not None and (func is _METHOD or func is _BACKWARD or func is _GRAD):
                with self:  # for what was not kept, and is computed again
                    return _RUN(func, types, args, kwargs)
        return func(*args, **kwargs)


def _pytorch_s(types: Any) -> bool:
    """Whether a call is PyTorch's: of tensors with functions of their own, or to be followed."""
    for kind in types:
        if kind is not torch.Tensor:
            return True
    return torch.compiler.is_exporting() or transformed()


def attention() -> Redirected:
    """Compute PyTorch's attention functions on the engine, within a ``with`` block.

    Within, `torch.nn.functional.scaled_dot_product_attention` is
    `multihead.torch.scaled_dot_product_attention`, and
    `torch.nn.functional.multi_head_attention_forward` is computed as
    `multihead.torch.MultiheadAttention` is, wherever they are called from and by whatever name they
    were imported. Nothing is put in their place: another thread, and what comes after the block,
    sees nothing of it.

    Returns
    -------
    Redirected
        A context manager, which may be entered again, and within itself.

    See Also
    --------
    accelerate : With ``functions=True`` puts the calls of a model in such a scope.

    Notes
    -----
    A `torch.overrides.TorchFunctionMode`: each thread enters it for itself, as it does
    `torch.no_grad`, and `torch.compile` follows it from within and from without. It costs a call of
    attention about 3 µs, and every other of PyTorch's functions in the block 1 µs to 5 µs.

    PyTorch computes, unchanged, what the engine does not: tensors that are not in CPU memory, of
    other dtypes, nested or of a subclass, a static key or value, `torch.vmap` and other function
    transforms, forward-mode derivatives, `torch.jit.trace` and `torch.export`.

    `torch.utils.checkpoint` computes again what it did not keep: call ``backward`` within the
    block too.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import scaled_dot_product_attention
    >>> import multihead.torch
    >>> q, k, v = torch.randn(3, 2, 4, 5, 8, requires_grad=True).unbind()
    >>> with multihead.torch.attention():
    ...     out = scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> ours = multihead.torch.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> torch.equal(out, ours), tuple(out.shape)
    (True, (2, 4, 5, 8))
    """
    return Redirected()


def is_redirected() -> bool:
    """Whether this thread is within the scope."""
    for i in range(torch._C._len_torch_function_stack()):
        if type(torch._C._get_function_stack_at(i)) is Redirected:
            return True
    return False
