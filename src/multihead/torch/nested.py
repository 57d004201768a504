"""NestedTensors, strided and jagged, as ragged batches and back."""

from __future__ import annotations

from typing import Any

import torch

from multihead.arguments import LayerTensors
from multihead.torch.calls import Offsets
from multihead.torch.dispatch import traced, transformed


class _Values(torch.autograd.Function):
    """The tokens of a jagged batch; PyTorch's own cannot be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, nested: Any) -> torch.Tensor:
        ctx.like = nested.detach()
        ctx.set_materialize_grads(False)
        values: torch.Tensor = nested.values().view_as(nested.values())
        return values

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        return None if grad is None else _Nested.apply(grad, ctx.like)


class _Nested(torch.autograd.Function):
    """The way back: a jagged batch of tokens, of the lengths of another."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        return _jagged(values, like)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        return None if grad is None else _Values.apply(grad), None


def _jagged(values: torch.Tensor, like: Any) -> torch.Tensor:
    nested: torch.Tensor = torch.nested.nested_tensor_from_jagged(
        values,
        like.offsets(),
        min_seqlen=like._maybe_min_seqlen,
        max_seqlen=like._maybe_max_seqlen,
    )
    return nested


class NestedBatch:
    """The sequences of a NestedTensor (N, tokens, features), one after another."""

    def __init__(self, nested: torch.Tensor) -> None:
        self.nested = nested
        self.jagged = nested.layout == torch.jagged
        if self.jagged:
            whole = nested if _plain(nested) else nested.contiguous()
            self.values = whole.values() if _followed() else _Values.apply(whole)
            self.offsets = whole.offsets().to(torch.int64)
            self.nested = whole
        else:
            parts = nested.unbind()
            lengths = torch.tensor([0, *(x.shape[0] for x in parts)], device="cpu")
            self.values, self.offsets = torch.cat(parts), lengths.cumsum(0)

    def like(self, values: torch.Tensor) -> torch.Tensor:
        """Return a NestedTensor of the same lengths and layout, (N, tokens, features)."""
        if self.jagged:
            nested: torch.Tensor
            followed = _followed()
            nested = (
                _jagged(values, self.nested) if followed else _Nested.apply(values, self.nested)
            )
            return nested
        parts = values.split(self.offsets.diff().tolist())
        strided: torch.Tensor = torch.nested.as_nested_tensor(list(parts), layout=torch.strided)
        return strided


def ragged_inputs(tensors: LayerTensors) -> tuple[LayerTensors, Offsets, NestedBatch]:
    """Return inputs (total, features), where their sequences begin, and the query's batch."""
    query = NestedBatch(tensors.query)
    key, value = (None if x is None else NestedBatch(x) for x in (tensors.key, tensors.value))
    values = tensors._replace(
        query=query.values,
        key=None if key is None else key.values,
        value=None if value is None else value.values,
    )
    return values, Offsets(query.offsets, (query if key is None else key).offsets), query


def _followed() -> bool:
    """Whether PyTorch traces or transforms what an autograd function would hide."""
    return traced() or transformed()


def _plain(jagged: Any) -> bool:
    return bool(jagged._ragged_idx == 1 and jagged.lengths() is None)


def longest(nested: torch.Tensor) -> int:
    """Return the length of the longest sequence."""
    return max(_lengths(nested), default=0)


def same_lengths(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two NestedTensors have sequences of the same lengths."""
    if a.layout == torch.jagged and b.layout == torch.jagged:
        if a.size(1) == b.size(1):  # their symbolic lengths
            return True
        return not torch.compiler.is_compiling() and torch.equal(a.offsets(), b.offsets())
    return _lengths(a) == _lengths(b)


def _lengths(nested: torch.Tensor) -> list[int]:
    return [x.shape[0] for x in nested.unbind()]


def padded_weights(weights: torch.Tensor, offsets: Offsets, heads: int, extra: int) -> torch.Tensor:
    """Return weights (N, heads, max L, max S'), zeros where a sequence has ended.

    Parameters
    ----------
    weights : Tensor
        Of all sequences, one after another.
    offsets : Offsets
    heads : int
    extra : int
        Keys that every sequence has more.
    """
    queries, keys = offsets.query.diff().tolist(), (offsets.key.diff() + extra).tolist()
    sizes = [heads * length * source for length, source in zip(queries, keys, strict=True)]
    longest, widest = max(queries, default=0), max(keys, default=0)
    parts = zip(weights.split(sizes), queries, keys, strict=True)
    padded = [
        torch.nn.functional.pad(
            part.view(heads, length, source), (0, widest - source, 0, longest - length)
        )
        for part, length, source in parts
    ]
    if not padded:
        return weights.new_zeros((0, heads, 0, extra))
    return torch.stack(padded)
