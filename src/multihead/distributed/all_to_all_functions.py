"""All-to-all attention and its backward, as functions."""

from __future__ import annotations

from typing import Any, NamedTuple

from multihead.distributed import ulysses
from multihead.distributed.communicator import Communicator, checked_communicator
from multihead.distributed.given import Options
from multihead.distributed.results import check_cache, given_back, shown_gradients, shown_results
from multihead.distributed.ring import Result
from multihead.distributed.sharding import Sharding
from multihead.score_rules import Window
from multihead.seeds import Seed


class AllToAllCache(NamedTuple):
    """What one call leaves for backward on this rank; it refers to the inputs and copies none."""

    call: ulysses.Exchanged
    communicator: Communicator
    of_heads: Result

    def __repr__(self) -> str:
        query, key, value = self.call.given.shapes
        at = f"rank={self.communicator.rank} of {self.communicator.size}"
        return f"AllToAllCache({at}, query={query}, key={key}, value={value})"


def all_to_all_attention(
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
    ring: Communicator | None = None,
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
    """Compute attention over sequences of which each rank holds a part, by exchanging heads.

    All ranks call it together. Each gets all tokens of some of the heads, attends as one process
    does, and gives every rank its tokens back. Arguments, results and errors are those of
    `ring_attention`.

    Parameters
    ----------
    query : array of shape (..., H, L_r, D), or Ragged
        H is at least the number of ranks, and need not be a multiple of it.
    key : array of shape (..., Hk, S_r, D)
        With `enable_gqa` Hk may be any divisor of H: ranks that share a head of keys all get it.
    value : array of shape (..., Hk, S_r, Dv)
    attn_mask : array, bool or floating, optional
        As for `ring_attention`. Its rows are exchanged too: every rank gets those of all queries.
    dropout_p, is_causal, scale, enable_gqa
        As there.
    communicator : Communicator
        The ranks that exchange heads.
    ring : Communicator, optional
        The other dimension of a mesh: the ranks that go round with what those of `communicator`
        hold together. Sequences are sharded over the ring first, and each part contiguously over
        `communicator` then.
    sharding : {"contiguous", "zigzag"}, default "contiguous"
        Over the ring, if there is one.
    window, query_offset, key_lengths, softcap, alibi_slopes, sinks, seed
        As there.
    return_lse, return_cache : bool, default False

    Returns
    -------
    out : array of shape (..., H, L_r, Dv), or Ragged
    lse : array of shape (..., H, L_r), or Ragged
        With `return_lse`.
    cache : object
        With `return_cache`, for `all_to_all_attention_backward`.

    Raises
    ------
    ValueError, TypeError, TimeoutError, ConnectionError
        As `ring_attention`, and if there are fewer heads than ranks.

    Notes
    -----
    Without a ring and sinks the output has the bits of one process, on any number of ranks. Jacobs
    et al., "DeepSpeed Ulysses" (2023); Fang and Zhao, "USP" (2024), for both dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead import functional
    >>> from multihead.distributed import all_to_all_attention, shard, threads
    >>> x = np.random.default_rng(0).normal(size=(1, 4, 9, 4))
    >>> def program(ranks):
    ...     part = shard(x, ranks)
    ...     out = all_to_all_attention(part, part, part, is_causal=True, communicator=ranks)
    ...     whole = functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    ...     return np.array_equal(out, shard(whole, ranks))
    >>> threads.run(3, program)
    [True, True, True]
    """
    options = Options(
        attn_mask, dropout_p, is_causal, scale, enable_gqa, window, query_offset, key_lengths,
        softcap, alibi_slopes, sinks, seed,
    )  # fmt: skip
    communicator = checked_communicator("communicator", communicator)
    ring = None if ring is None else checked_communicator("ring", ring)
    options = options._replace(returns=(return_lse, return_cache))
    call = ulysses.exchange(communicator, ring, (query, key, value), options, sharding)
    result, of_heads = ulysses.forward(call, communicator)
    cache = AllToAllCache(call, communicator, of_heads)
    return shown_results(call.given, result, cache, (return_lse, return_cache))


def all_to_all_attention_backward(
    d_out: Any,
    cache: Any,
    *,
    need_mask_grad: bool = False,
    need_sink_grad: bool = False,
    d_lse: Any = None,
) -> tuple[Any, ...]:
    """Return the gradients of what this rank gave to `all_to_all_attention`.

    All ranks call it together. Arguments, results and errors are those of
    `ring_attention_backward`.

    Parameters
    ----------
    d_out : array of shape (..., H, L_r, Dv), or Ragged
        Gradient of the output, of its dtype.
    cache : object
        From a call with ``return_cache=True``.
    need_mask_grad, need_sink_grad : bool, default False
    d_lse : array of shape (..., H, L_r), or Ragged, optional

    Returns
    -------
    d_query, d_key, d_value : array or Ragged
    d_attn_mask : array or None
        With `need_mask_grad`.
    d_sinks : array or None
        With `need_sink_grad`.

    Raises
    ------
    ValueError, TypeError, TimeoutError, ConnectionError
        As `ring_attention`, and if `cache` is no cache.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead import distributed
    >>> def program(ranks):
    ...     x = distributed.shard(np.ones((1, 2, 4, 4)), ranks)
    ...     out, cache = distributed.all_to_all_attention(
    ...         x, x, x, communicator=ranks, return_cache=True
    ...     )
    ...     *_, d_value = distributed.all_to_all_attention_backward(np.ones_like(out), cache)
    ...     return d_value.shape, float(d_value.sum().round(6))
    >>> from multihead.distributed import threads
    >>> threads.run(2, program)
    [((1, 2, 2, 4), 16.0), ((1, 2, 2, 4), 16.0)]
    """
    check_cache(cache, AllToAllCache)
    call, communicator, of_heads = cache
    back = given_back(
        call.given, (communicator, call.others), (d_out, d_lse), (need_mask_grad, need_sink_grad)
    )
    gradients = ulysses.backward(call, communicator, of_heads, back)
    return shown_gradients(call.given, call.mask, call.problem.rules, gradients, back.wanted)
