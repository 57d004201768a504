"""Ring attention and its backward, as functions."""

from __future__ import annotations

from typing import Any, NamedTuple

from multihead.distributed import ring
from multihead.distributed.communicator import Communicator, checked_communicator
from multihead.distributed.given import Options
from multihead.distributed.problem import Problem, prepare
from multihead.distributed.results import check_cache, given_back, shown_gradients, shown_results
from multihead.distributed.sharding import Sharding
from multihead.score_rules import Window
from multihead.seeds import Seed


class RingCache(NamedTuple):
    """What one call leaves for backward on this rank; it refers to the inputs and copies none."""

    problem: Problem
    communicator: Communicator
    result: ring.Result

    def __repr__(self) -> str:
        query, key, value = self.problem.given.shapes
        at = f"rank={self.communicator.rank} of {self.communicator.size}"
        return f"RingCache({at}, query={query}, key={key}, value={value})"


def ring_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    communicator: Communicator,
    sharding: Sharding = "contiguous",
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: bool = False,
    return_cache: bool = False,
) -> Any:
    """Compute attention over sequences of which each rank holds a part.

    All ranks call it together. Queries stay where they are, keys and values come by. Arguments and
    results are those of `multihead.functional.scaled_dot_product_attention`, of which this is the
    same sum: positions, lengths and windows count in the whole sequence.

    Parameters
    ----------
    query : array of shape (..., L_r, D), or Ragged
        The queries that this rank holds, see `shard`. Of packed sequences, its tokens of each.
    key : array of shape (..., S_r, D)
    value : array of shape (..., S_r, Dv)
    attn_mask : array, bool or floating, optional
        Broadcastable to (..., L_r, S): rows of this rank's queries, a column for every key, in the
        order of positions. **True = attend.** For packed sequences whole, (N, H, L, S), and the
        same on every rank.
    dropout_p, is_causal, scale, enable_gqa
        As there, the same on every rank, as all that follows. Dropout draws as one process would.
    communicator : Communicator
        Of `multihead.distributed.threads`, `.process_group` or `.mpi`.
    sharding : {"contiguous", "zigzag"}, default "contiguous"
        How queries and keys are sharded. Contiguous parts may be of any lengths, some of them
        empty. "zigzag" shares out the work of causal attention evenly.
    window, query_offset, key_lengths, softcap, alibi_slopes, sinks
        As there. Keys that no query of another rank sees by these are not sent to it.
    seed : int, numpy.random.Generator or numpy.random.SeedSequence, optional
        Drawn by rank 0 when not given.
    return_lse, return_cache : bool, default False

    Returns
    -------
    out : array of shape (..., L_r, Dv), or Ragged
    lse : array of shape (..., L_r), or Ragged
        With `return_lse`.
    cache : object
        With `return_cache`, for `ring_attention_backward`.

    Raises
    ------
    ValueError
        On every rank, if an argument is wrong on one of them or differs between them.
    TypeError
        On this rank if an argument is of a wrong type; on others it is a ValueError that says so.
    TimeoutError, ConnectionError
        If another rank does not answer in the communicator's time, or is gone.

    Notes
    -----
    Rank r adds up the keys of ranks r, r - 1, ..., r + 1 in this order, whatever arrives when, in
    the dtype computed in: float32 for float16 and bfloat16. So bits are the same in every run and
    on every transport. Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite
    Context" (2023); Brandon et al., "Striped Attention" (2023), for the balance.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead import functional
    >>> from multihead.distributed import ring_attention, shard, threads
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 9, 4))
    >>> def program(ranks):
    ...     part = shard(x, ranks, sharding="zigzag")
    ...     out = ring_attention(
    ...         part, part, part, is_causal=True, communicator=ranks, sharding="zigzag"
    ...     )
    ...     whole = functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    ...     return np.allclose(out, shard(whole, ranks, sharding="zigzag"))
    >>> threads.run(3, program)
    [True, True, True]
    """
    options = Options(
        attn_mask, dropout_p, is_causal, scale, enable_gqa, window, query_offset, key_lengths,
        softcap, alibi_slopes, sinks, seed,
    )  # fmt: skip
    communicator = checked_communicator("communicator", communicator)
    options = options._replace(returns=(return_lse, return_cache))
    problem = prepare(communicator, (query, key, value), options, sharding)
    result = ring.forward(problem, communicator)
    cache = RingCache(problem, communicator, result)
    return shown_results(problem.given, result, cache, (return_lse, return_cache))


def ring_attention_backward(
    d_out: Any,
    cache: Any,
    *,
    need_mask_grad: bool = False,
    need_sink_grad: bool = False,
    d_lse: Any = None,
) -> tuple[Any, ...]:
    """Return the gradients of what this rank gave to `ring_attention`.

    All ranks call it together. Keys and values come by once more, and the gradients that the
    queries of other ranks have for this rank's keys come home.

    Parameters
    ----------
    d_out : array of shape (..., L_r, Dv), or Ragged
        Gradient of the output, of its dtype.
    cache : object
        From a call with ``return_cache=True``.
    need_mask_grad, need_sink_grad : bool, default False
    d_lse : array of shape (..., L_r), or Ragged, optional

    Returns
    -------
    d_query, d_key, d_value : array or Ragged
        Of this rank's part, from the queries of all ranks.
    d_attn_mask : array or None
        With `need_mask_grad`: of this rank's rows. Of a mask that all queries share, and for packed
        sequences, the sum over all ranks.
    d_sinks : array or None
        With `need_sink_grad`: the sum over all ranks.

    Raises
    ------
    ValueError, TypeError, TimeoutError, ConnectionError
        As `ring_attention`, and if `cache` is no cache.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.distributed import ring_attention, ring_attention_backward, shard, threads
    >>> def program(ranks):
    ...     x = shard(np.eye(4)[None, None], ranks)
    ...     out, cache = ring_attention(x, x, x, communicator=ranks, return_cache=True)
    ...     d_query, d_key, d_value = ring_attention_backward(np.ones_like(out), cache)
    ...     return d_value.shape, float(d_value.sum().round(6))
    >>> threads.run(2, program)
    [((1, 1, 2, 4), 8.0), ((1, 1, 2, 4), 8.0)]
    """
    check_cache(cache, RingCache)
    problem, communicator, result = cache
    back = given_back(
        problem.given, (communicator,), (d_out, d_lse), (need_mask_grad, need_sink_grad)
    )
    gradients = ring.backward(problem, communicator, result, back)
    return shown_gradients(problem.given, problem.mask, problem.rules, gradients, back.wanted)
