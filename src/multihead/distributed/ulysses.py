"""All-to-all attention: ranks exchange tokens for heads, and attend to whole sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from multihead.arrays import Array, encode
from multihead.checks import wrong
from multihead.distributed import ring
from multihead.distributed.agreement import agree_all
from multihead.distributed.communicator import Alone, Communicator
from multihead.distributed.given import Given, Options, checked, signature, take_in
from multihead.distributed.heads import Shares, Tokens, shares, to_heads, to_tokens
from multihead.distributed.problem import (
    Problem,
    agreed_mask,
    gathered,
    prepare,
    shared_seed,
)
from multihead.distributed.ring import Back, Gradients, Result
from multihead.distributed.sharding import Sharding, runs_of, sharding_of
from multihead.masks import Mask, MaskGradient
from multihead.packed import Packing


class Exchanged(NamedTuple):
    """A call after the exchange.

    Attributes
    ----------
    given : Given
        This rank's tokens of all heads.
    mask : Mask or None
        Theirs.
    problem : Problem
        All tokens of the ranks that exchange, of this rank's heads.
    shares : Shares
    queries, keys : Tokens
    others : Communicator
        The ring.
    """

    given: Given
    mask: Mask | None
    problem: Problem
    shares: Shares
    queries: Tokens
    keys: Tokens
    others: Communicator


def exchange(
    communicator: Communicator,
    ring_of: Communicator | None,
    call: tuple[Any, Any, Any] | Given,
    options: Options,
    sharding: Sharding,
) -> Exchanged:
    """Agree on a call with the other ranks and exchange its tokens for heads.

    The ranks of `ring_of` go round with the tokens of all that exchange. Tokens are sharded over
    them, and contiguously over those that exchange then.
    """
    others = Alone() if ring_of is None else ring_of
    ways: tuple[Sharding, Sharding | None] = (sharding, None)
    if ring_of is not None:
        ways = ("contiguous", sharding)
    given, options = _agreed(communicator, others, call, options, ways)
    lengths = gathered(communicator, given.lengths)
    queries, keys = (
        Tokens(
            runs_of(lengths[:, i], ways[0], name),
            None if given.packing is None else np.cumsum([0, *lengths[:, i].sum(axis=0)]),
        )
        for i, name in enumerate(("query", "key"))
    )
    of_ranks = shares(*given.heads, communicator.size)
    whole = _whole(communicator, given, of_ranks, (queries, keys))
    of_all = options._replace(attn_mask=None, seed=0)  # the seed comes when nothing fails any more
    if options.extra is not None:
        k, v = (_keys_of_rank(x, of_ranks, communicator.rank) for x in options.extra)
        of_all = of_all._replace(extra=(k, v))
    own = int(of_ranks.queries[communicator.rank][0]), given.heads[0]
    problem = prepare(others, whole, of_all, ways[1] or "contiguous", own)
    mask = None
    if options.attn_mask is not None:
        scores = (given.batch, given.heads[0], *problem.longest)
        mask, shared = agreed_mask((communicator, others), given, options.attn_mask, scores)
        assert mask is not None
        rows = mask
        if not shared and given.arrays[0].shape[2] == 0:  # one for no query, perhaps
            rows = mask._replace(array=mask.array[:, :, :0])
        array = _mask_to_heads(communicator, rows, of_ranks, None if shared else queries)
        problem = problem._replace(mask=Mask(array, _gradient_like(mask, array)), shared=shared)
    seed = shared_seed((others, communicator), options)
    problem = problem._replace(options=problem.options._replace(seed=seed))
    return Exchanged(given, mask, problem, of_ranks, queries, keys, others)


def _agreed(
    communicator: Communicator,
    others: Communicator,
    call: tuple[Any, Any, Any] | Given,
    options: Options,
    ways: tuple[Sharding, Sharding | None],
) -> tuple[Given, Options]:
    """Take in this rank's part and agree with all others; `ways` are how both dimensions shard."""
    given: Given | None = None
    error: Exception | None = None
    said: dict[str, Any] = {}
    try:
        for way in filter(None, ways):
            sharding_of(way)
        given = call if isinstance(call, Given) else take_in(*call, options)
        options = checked(options, given)
        said = signature(options, given, str(ways))
        heads, size = given.heads[0], communicator.size
        if heads < size:
            out = "ring_attention has no such limit"
            raise wrong("query", f"at least {size} heads, one for each rank ({out})", heads)
    except Exception as found:
        error = found
    agree_all((communicator, others), said, error)
    assert given is not None
    return given, options


def _whole(
    communicator: Communicator, given: Given, heads: Shares, tokens: tuple[Tokens, Tokens]
) -> Given:
    """Exchange tokens of all heads for all tokens of this rank's heads."""
    queries, keys = tokens
    q, k, v = given.arrays
    q = to_heads(communicator, q, heads.queries, queries)
    k, v = (to_heads(communicator, x, heads.keys, keys) for x in (k, v))
    k, v = (_repeated(x, heads, communicator.rank) for x in (k, v))
    packing = None
    if queries.offsets is not None and keys.offsets is not None:
        packing = Packing(queries.offsets, keys.offsets)
    return given._replace(arrays=(q, k, v), shapes=(q.shape, k.shape, v.shape), packing=packing)


def forward(call: Exchanged, communicator: Communicator) -> tuple[Result, Result]:
    """Compute attention; return results of this rank's tokens, and of its heads for backward."""
    result = ring.forward(call.problem, call.others)
    heads, tokens = call.shares.queries, call.queries
    out = to_tokens(communicator, _rounded(call, result.out), heads, tokens)
    lse = to_tokens(communicator, result.lse[..., None], heads, tokens)[..., 0]
    return Result(out, lse, result.stats), result


def backward(
    call: Exchanged,
    communicator: Communicator,
    result: Result,
    back: Back,
) -> Gradients:
    """Compute the gradients of this rank's tokens: the exchanges of forward, the other way."""
    heads, rank = call.shares, communicator.rank
    d_lse = back.d_lse
    d_out = to_heads(communicator, back.d_out, heads.queries, call.queries)
    if d_lse is not None:
        d_lse = to_heads(communicator, d_lse[..., None], heads.queries, call.queries)[..., 0]
    of_heads = ring.backward(call.problem, call.others, result, Back(d_out, d_lse, back.wanted))
    d_q = to_tokens(communicator, _rounded(call, of_heads.query), heads.queries, call.queries)
    d_k, d_v = (
        to_tokens(communicator, _folded(x, heads.repeated[rank]), heads.keys, call.keys)
        for x in (of_heads.key, of_heads.value)
    )
    d_mask, d_sinks = of_heads.mask, of_heads.sinks
    if d_mask is not None and call.mask is not None:
        rows = None if call.problem.shared else call.queries
        d_mask = to_tokens(communicator, d_mask, _mask_heads(call.mask, heads), rows)
        if d_mask.shape[2] < call.mask.array.shape[2]:  # that row has none
            d_mask = np.zeros(call.mask.array.shape, d_mask.dtype)
    if d_sinks is not None:
        row = to_tokens(communicator, d_sinks[None, :, None], heads.queries, None)
        d_sinks = row[0, :, 0]
    d_extra = of_heads.extra
    if d_extra is not None:
        count = call.given.heads[1]
        of_k, of_v = (_of_all_heads(x, heads, rank, count) for x in d_extra)
        d_extra = of_k, of_v
    return Gradients(d_q, d_k, d_v, d_mask, d_sinks, d_extra)


def _rounded(call: Exchanged, array: Array) -> Array:
    """Round a result to the caller's dtype: it takes no more room on its way than it has there."""
    element = call.given.element
    return encode(array, element.stored, element.name == "bfloat16") if element.half else array


def _repeated(array: Array, heads: Shares, rank: int) -> Array:
    """Repeat heads of keys where groups of queries are smaller than before."""
    repeated = heads.repeated[rank]
    return array if len(repeated) == array.shape[1] else array.take(repeated, 1)


def _keys_of_rank(array: Array, heads: Shares, rank: int) -> Array:
    """Return what a rank uses of all heads of keys."""
    return _repeated(array.take(heads.keys[rank], 1), heads, rank)


def _of_all_heads(array: Array, heads: Shares, rank: int, count: int) -> Array:
    """Return the gradient of what `_keys_of_rank` was given; 0 for the heads of others."""
    whole = np.zeros((array.shape[0], count, *array.shape[2:]), array.dtype)
    whole[:, heads.keys[rank]] = _folded(array, heads.repeated[rank])
    return whole


def _folded(array: Array, repeated: Array) -> Array:
    """Add up the gradients of heads of keys that were repeated."""
    if len(repeated) == repeated.max(initial=-1) + 1:
        return array
    starts = np.flatnonzero(np.diff(repeated, prepend=-1))
    total: Array = np.add.reduceat(array, starts, axis=1)
    return total


def _mask_heads(mask: Mask, heads: Shares) -> list[Array]:
    """Return which heads of a mask each rank has: of one that all share, the only one."""
    if mask.array.shape[1] > 1:
        return heads.queries
    return [np.zeros(1, np.int64)] * len(heads.queries)


def _mask_to_heads(
    communicator: Communicator, mask: Mask, heads: Shares, queries: Tokens | None
) -> Array:
    """Return the rows of all queries for this rank's heads."""
    of_ranks = _mask_heads(mask, heads)
    if queries is None:
        own: Array = mask.array.take(of_ranks[communicator.rank], 1)
        return own
    return to_heads(communicator, mask.array, of_ranks, queries)


def _gradient_like(mask: Mask, array: Array) -> MaskGradient | None:
    """Say that a mask of other heads and rows has a gradient, of its own shape, if it has one."""
    of = mask.gradient
    return of and MaskGradient(array.shape, array.shape, of.kind)
