"""What the ranks of a sharded layer are given: checked on each, and agreed on before any work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from multihead.arguments import LayerParameters
from multihead.arrays import Array, decode
from multihead.checks import boolean, integer, wrong
from multihead.distributed.agreement import agree_all, digest
from multihead.distributed.context_parallel import ContextParallel
from multihead.distributed.layer_cache import ParallelCache, usable
from multihead.distributed.layer_heads import Batch
from multihead.layouts import Dense, RaggedBatch
from multihead.masks import Mask, attention_mask, padding_mask
from multihead.ragged import Ragged

if TYPE_CHECKING:
    from multihead.layer import MultiheadAttention


class Shared(NamedTuple):
    """A layer that ranks share, and which axis of its inputs is said to be that of the tokens."""

    layer: MultiheadAttention
    parallel: ContextParallel
    sequence_dim: int | None


class Taken(NamedTuple):
    """What a call takes in, the masks of this rank's keys among it."""

    batch: Batch
    padding: Mask | None
    causal: bool


class GivenBack(NamedTuple):
    """What backward is given: a call, the gradient of its output, and where gradients go."""

    call: ParallelCache
    d_rows: Array
    grads: LayerParameters
    of_masks: bool


def agree_on_layer(shared: Shared) -> None:
    """Raise on all ranks unless each has the same layer, and one that they can share."""
    layer, parallel, sequence_dim = shared
    said: dict[str, Any] = {}
    error: Exception | None = None
    try:
        _check_axis(sequence_dim, layer.batch_first)
        ranks = parallel.communicator.size
        if parallel.scheme == "all_to_all" and layer.num_heads < ranks:
            expected = f'one of at least {ranks} heads, one for each rank (or scheme="ring")'
            raise wrong("layer", expected, layer.num_heads)
        options = layer.options()
        if layer.rope is not None:
            options["rope"] = digest(np.frombuffer(_sorted(layer.rope.to_dict()), np.uint8))
        said = {name: repr(value)[:60] for name, value in options.items()}
        said |= {"scheme": parallel.scheme, "sharding": parallel.sharding}
        said |= {
            name: f"checksum {digest(x)} (load one state dict)"
            for name, x in layer._block.arrays.items()
        }
    except Exception as found:
        error = found
    agree_all(parallel.communicators, said, error)


def take_in(
    shared: Shared,
    inputs: tuple[Any, Any, Any],
    masks: tuple[Any, Any],
    flags: tuple[Any, Any, Any],
    mode: Mapping[str, Any],
) -> Taken:
    """Check what does not depend on the parts of others, and agree on it and on the mode."""
    layer = shared.layer
    said: dict[str, Any] = {}
    error: Exception | None = None
    taken: Taken | None = None
    try:
        if boolean("need_weights", flags[0]):
            way = "weights over all keys grow with the square of the length; the layer has them"
            raise wrong("need_weights", f"False ({way})", True)
        boolean("average_attn_weights", flags[1])
        causal = boolean("is_causal", flags[2])
        _check_axis(shared.sequence_dim, layer.batch_first)
        batch, padding = _batch(layer, inputs, masks[0])
        taken = Taken(batch, padding, causal)
        said = {
            "batch": [type(batch).__name__, batch.tokens_first, batch.batched],
            "dtype": batch.element.name,
            "sequences": batch.batch,
            "key_padding_mask": None if padding is None else padding.array.dtype.name,
            "attn_mask": None if masks[1] is None else "a mask",
            "is_causal": causal,
            **mode,
        }
    except Exception as found:
        error = found
    agree_all(shared.parallel.communicators, said, error)
    assert taken is not None
    return taken


def take_mask(
    shared: Shared, attn_mask: Any, batch: Batch, longest: tuple[int, int]
) -> Mask | None:
    """Check the rows of attn_mask against the keys of all ranks; `longest` are whole sequences."""
    if attn_mask is None:
        return None
    attn: Mask | None = None
    error: Exception | None = None
    queries = longest[0] if isinstance(batch, RaggedBatch) else batch.queries
    scores = (batch.batch, shared.layer.num_heads, queries, longest[1])
    try:
        attn = attention_mask(attn_mask, scores, batch.element.compute)
    except Exception as found:
        error = found
    agree_all(shared.parallel.communicators, {}, error)
    return attn


def take_back(
    shared: Shared, cache: Any, owner: object, d_out: Any, need_mask_grad: Any
) -> GivenBack:
    """Check what backward is given, and agree on it."""
    said: dict[str, Any] = {}
    error: Exception | None = None
    given: GivenBack | None = None
    try:
        wanted = boolean("need_mask_grad", need_mask_grad)
        call = usable(cache, owner)
        d_rows, _ = call.batch.read_d_out(d_out)
        if call.batch.element.half:
            bits = call.batch.element.name == "bfloat16"
            d_rows = decode(d_rows, call.batch.element.compute, bits)
        grads, _ = shared.layer._grads_now()
        given = GivenBack(call, d_rows, grads, wanted)
        said = {"need_mask_grad": wanted, "cache": f"of call {call.number}"}
    except Exception as found:
        error = found
    agree_all(shared.parallel.communicators, said, error)
    assert given is not None
    return given


def _batch(
    layer: MultiheadAttention, inputs: tuple[Any, Any, Any], key_padding_mask: Any
) -> tuple[Batch, Mask | None]:
    """Read inputs, and the padding of this rank's keys."""
    if any(isinstance(x, Ragged) for x in inputs):
        ragged = RaggedBatch(layer._element, layer._sizes, *inputs)
        ragged.masks(key_padding_mask, None)  # there is no padding
        return ragged, None
    batch = Dense(layer._element, layer._sizes, layer.batch_first, *inputs)
    columns = (batch.batch, batch.keys) if batch.batched else (batch.keys,)
    padding = padding_mask(key_padding_mask, columns, batch.element.compute, batch.tokens_first)
    if padding is not None:
        padding = padding._replace(array=padding.array.reshape(batch.batch, batch.keys))
    return batch, padding


def _check_axis(axis: Any, batch_first: bool) -> None:
    """Raise unless an axis of batched inputs is that of the tokens."""
    if axis is None:
        return
    tokens = int(batch_first)
    given = integer("sequence_dim", axis, -3, 3) % 3
    if given != tokens:
        which = "of the features" if given == 2 else "of the batch"
        form = "(N, L, E)" if batch_first else "(L, N, E)"
        expected = f"{tokens}, the axis of the tokens of {form} with batch_first={batch_first}"
        raise wrong("sequence_dim", expected, f"{axis}, that {which}")


def _sorted(options: dict[str, Any]) -> bytes:
    return json.dumps(options, sort_keys=True, default=str).encode()
