"""Calls as the flat arguments of PyTorch's operations, whose schemas have no tuples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, get_type_hints

from multihead.arguments import AttentionOptions, AttentionTensors, LayerOptions, LayerTensors
from multihead.torch.calls import AttentionCall, LayerCall, Offsets

_TYPES: dict[Any, str] = {int: "int", bool: "bool", float: "float", str: "str"}
_TYPES |= {bool | None: "bool?"}


def _tensors(kind: Any, required: Sequence[str]) -> str:
    names = [f"Tensor{'' if name in required else '?'} {name}" for name in kind._fields]
    return ", ".join(names)


# of those that have defaults, the ones that calls of ours may change
_RULES = ("softcap", "window_left", "window_right", "interleaved")


def _sent(kind: Any) -> tuple[str, ...]:
    """Return the options that travel; the seed is a tensor."""
    changed = [x for x in kind._fields if x in _RULES or x not in kind._field_defaults]
    return tuple(x for x in changed if x != "seed")


def _options(kind: Any) -> str:
    types = get_type_hints(kind)
    return ", ".join(f"{_TYPES[types[x]]} {x}" for x in _sent(kind))


_OF_LAYER, _OF_ATTENTION = _sent(LayerOptions), _sent(AttentionOptions)

LAYER_SCHEMA = ", ".join(
    [
        _tensors(LayerTensors, ["query"]),
        "Tensor? seed, Tensor? query_offsets, Tensor? key_offsets",
        _options(LayerOptions),
    ]
)
ATTENTION_SCHEMA = ", ".join(
    [
        _tensors(AttentionTensors, ["query", "key", "value"]),
        "Tensor? seed",
        _options(AttentionOptions),
    ]
)


def flat_layer(call: LayerCall) -> tuple[Any, ...]:
    """Lay out a call of the layer as `LAYER_SCHEMA` says."""
    sent = [getattr(call.options, name) for name in _OF_LAYER]
    return *call.tensors, call.options.seed, *(call.offsets or (None, None)), *sent


def flat_attention(call: AttentionCall) -> tuple[Any, ...]:
    """Lay out a call of scaled dot-product attention as `ATTENTION_SCHEMA` says."""
    sent = [getattr(call.options, name) for name in _OF_ATTENTION]
    return *call.tensors, call.options.seed, *sent


def layer_call(arguments: Sequence[Any]) -> tuple[LayerCall, list[Any]]:
    """Return a call that was laid out flat, and the arguments after it."""
    rest = iter(arguments)
    tensors = LayerTensors(*islice(rest, len(LayerTensors._fields)))
    seed, query_offsets, key_offsets = islice(rest, 3)
    offsets = None if query_offsets is None else Offsets(query_offsets, key_offsets)
    sent = dict(zip(_OF_LAYER, rest, strict=False))
    return LayerCall(tensors, LayerOptions(**sent, seed=seed), offsets), list(rest)


def attention_call(arguments: Sequence[Any]) -> tuple[AttentionCall, list[Any]]:
    """Return a call that was laid out flat, and the arguments after it."""
    rest = iter(arguments)
    tensors = AttentionTensors(*islice(rest, len(AttentionTensors._fields)))
    seed = next(rest)
    sent = dict(zip(_OF_ATTENTION, rest, strict=False))
    return AttentionCall(tensors, AttentionOptions(**sent, seed=seed)), list(rest)
