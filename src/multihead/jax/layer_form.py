"""What a layer's call says beside its arrays, as JAX traces it: the same for every primitive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from multihead.arguments import LayerOptions, LayerTensors

INPUTS = ("query", "key", "value")
MASKS = ("padding", "mask")


class LayerForm(NamedTuple):
    """The static part of a call; its arrays, the operands, follow one another in this order.

    Attributes
    ----------
    names : tuple of str
        The fields of `LayerTensors` that there are, in their order. With dropout one more operand
        comes after them: the seed, (2,) words of 32 bits, the high one first.
    options : LayerOptions
    kernels : bool
        Weights are (in, H * D) and (H * D, E), as kernels of flax lie in memory, and not torch's
        transposes of these.
    """

    names: tuple[str, ...]
    options: LayerOptions
    kernels: bool

    @property
    def drops(self) -> bool:
        """Whether there is dropout, and an operand for its seed."""
        return self.options.dropout_p > 0.0

    @property
    def arity(self) -> int:
        """How many operands there are."""
        return len(self.names) + self.drops

    @property
    def tokens_axis(self) -> int:
        """Which axis of the inputs counts tokens; the other of the first two is the batch's."""
        return 0 if self.options.tokens_first else 1

    def tensors(self, operands: Sequence[Any]) -> LayerTensors:
        """Name the operands; those that there are not are None."""
        given = dict.fromkeys(LayerTensors._fields)
        given.update(zip(self.names, operands, strict=False))
        return LayerTensors(**given)


class LayerShape(NamedTuple):
    """How large a call is: N, L and S, and how many columns its weights have."""

    batch: int
    queries: int
    keys: int
    columns: int


def shape_of(form: LayerForm, operands: Sequence[Any]) -> LayerShape:
    """Read the sizes of a call from its operands, or from what they look like."""
    tensors = form.tensors(operands)
    query, key, _ = tensors.three
    keys = key.shape[form.tokens_axis]
    extra = int(tensors.bias_k is not None) + int(form.options.zero_row)
    batch, queries = query.shape[1 - form.tokens_axis], query.shape[form.tokens_axis]
    return LayerShape(batch, queries, keys, keys + extra)
