"""Results as the caller's kinds of arrays, and what backward is given, taken in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multihead.arrays import Array, Kind, read, restore
from multihead.attention_inputs import rows_given
from multihead.checks import boolean, wrong
from multihead.distributed.agreement import agree_all
from multihead.distributed.communicator import Communicator
from multihead.distributed.given import Given
from multihead.distributed.ring import Back, Gradients, Result
from multihead.masks import Mask
from multihead.packed import pack, unpack_like
from multihead.score_rules import ScoreRules


def check_cache(cache: Any, kind: type[Any]) -> None:
    """Raise unless a cache is of the forward call that belongs to a backward."""
    if not isinstance(cache, kind):
        raise wrong("cache", "one of a call with return_cache=True", type(cache).__name__)


def given_back(
    given: Given, communicators: Sequence[Communicator], of_results: tuple[Any, Any], need: Any
) -> Back:
    """Take in the gradients of output and log-sums, or raise on all ranks."""
    d_out, d_lse = of_results
    of_out: Array | None = None
    of_rows: Array | None = None
    error: Exception | None = None
    said: dict[str, Any] = {}
    wanted = (False, False)
    q, _, v = given.arrays
    try:
        wanted = boolean("need_mask_grad", need[0]), boolean("need_sink_grad", need[1])
        said = {"need_mask_grad": wanted[0], "need_sink_grad": wanted[1]}
        said["d_lse"] = "none" if d_lse is None else "an array"
        of_queries = None if given.packing is None else given.packing.query
        d_out = unpack_like("d_out", d_out, of_queries)
        of_out, _, _ = read("d_out", d_out, given.element, "")
        shape = (*given.shapes[0][:-1], given.shapes[2][-1])
        if of_out.shape != shape:
            raise wrong("d_out", shape, of_out.shape)
        of_out = of_out.reshape(*q.shape[:-1], v.shape[-1])
        if d_lse is not None:
            d_lse = unpack_like("d_lse", d_lse, of_queries)
            of_rows = rows_given("d_lse", d_lse, shape[:-1], given.element.compute)
            of_rows = of_rows.reshape(q.shape[:-1])
    except Exception as found:
        error = found
    agree_all(communicators, said, error)
    assert of_out is not None
    return Back(of_out, of_rows, wanted)


def shown_results(given: Given, result: Result, cache: Any, wanted: tuple[bool, bool]) -> Any:
    """Return output, and log-sums and cache where wanted, as the caller's kind of array."""
    kind, shape = given.kinds[0], (*given.shapes[0][:-1], given.shapes[2][-1])
    out = result.out
    if wanted[1] and not given.element.half:  # the caller may change `out`
        out = out.copy()
    results = [_shown(given, out.reshape(shape), kind, 0)]
    if wanted[0]:
        wide = Kind(given.element.compute, False, kind.from_dlpack)
        results.append(_shown(given, result.lse.reshape(shape[:-1]), wide, 0))
    if wanted[1]:
        results.append(cache)
    return results[0] if len(results) == 1 else tuple(results)


def shown_gradients(
    given: Given,
    mask: Mask | None,
    rules: ScoreRules,
    gradients: Gradients,
    wanted: tuple[bool, bool],
) -> tuple[Any, ...]:
    """Return gradients as the caller's kinds of arrays, of mask and sinks where wanted."""
    results = [
        _shown(given, d.reshape(shape), kind, int(which > 0))
        for which, (d, shape, kind) in enumerate(
            zip(gradients[:3], given.shapes, given.kinds, strict=True)
        )
    ]
    if wanted[0]:
        of_mask, d_mask = mask and mask.gradient, gradients.mask
        results.append(None if of_mask is None or d_mask is None else of_mask.finish(d_mask))
    if wanted[1]:
        kind, d_sinks = rules.sinks_kind, gradients.sinks
        results.append(None if kind is None or d_sinks is None else restore(d_sinks, kind))
    return tuple(results)


def _shown(given: Given, array: Array, kind: Kind, which: int) -> Any:
    packing = given.packing
    return pack(restore(array, kind), None if packing is None else packing[which])
