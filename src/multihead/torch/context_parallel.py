"""Attention over sequences of which each rank holds a part, as a function of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from multihead.checks import wrong, wrong_type
from multihead.distributed import ContextParallel
from multihead.distributed.context_parallel import shares_mask
from multihead.distributed.given import Drawn
from multihead.score_rules import Window
from multihead.torch.dispatch import needs_grad, transformed
from multihead.torch.eager import eager
from multihead.torch.kept import put_together, taken_apart
from multihead.torch.tensors import NARROW, batched, readable, settled


class ShardedTensors(NamedTuple):
    """The tensors of a call that have gradients."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    sinks: torch.Tensor | None


@eager
def context_parallel_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    parallel: ContextParallel,
    window: Window = None,
    query_offset: int | str | Sequence[int] | torch.Tensor = 0,
    key_lengths: Sequence[int] | torch.Tensor | None = None,
    softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Compute attention over sequences of which each rank holds a part, with gradients.

    All ranks call it together, and ``backward`` too. Positions, lengths and windows count in the
    whole sequence, as in `multihead.torch.scaled_dot_product_attention`, of which this is the same
    sum.

    Parameters
    ----------
    query : Tensor
        (..., L_r, D), this rank's queries, of float32, float64, float16 or bfloat16.
    key, value : Tensor
        (..., S_r, D) and (..., S_r, Dv), this rank's.
    attn_mask : Tensor, optional
        Broadcastable to (..., L_r, S): rows of this rank's queries, a column for every key.
        **True = attend**; floats are added to the scores.
    dropout_p : float
        In every call. Rank 0 draws a seed from PyTorch's generator.
    is_causal, scale, enable_gqa
        As there, the same on every rank, as all that follows.
    parallel : ContextParallel
        The ranks, and how they share sequences.
    window, query_offset, key_lengths, softcap, alibi_slopes, sinks
        As there.
    return_lse : bool
        Return the logarithm of the sum of the exponentials of each query's scores, too.

    Returns
    -------
    out : Tensor
        (..., L_r, Dv).
    lse : Tensor
        With `return_lse`: (..., L_r), of float32, or float64 where that is computed in.

    Raises
    ------
    ValueError
        On every rank, if an argument is wrong on one of them or differs between them, and if
        PyTorch transforms or traces the call.
    TypeError
        On this rank if an argument is of a wrong type; on others it is a ValueError that says so.
        If `parallel` is of one, on this rank alone.
    RuntimeError
        In backward, if a tensor was changed in place since, or for second derivatives.
    TimeoutError, ConnectionError
        If another rank does not answer in the communicator's time, or is gone.

    Notes
    -----
    Gradients add up over ranks to those of the whole, as DistributedDataParallel and FSDP2 take
    them: of `sinks`, and of a mask whose row all queries share, each rank gets an equal part of the
    sum. Whether they need one has to be the same on every rank. Under autocast float32, float16 and
    bfloat16 become its dtype. `torch.compile` leaves its graph for the call, and
    `torch.utils.checkpoint` computes it again.

    Examples
    --------
    >>> import torch
    >>> from multihead.distributed import ContextParallel, threads
    >>> from multihead.torch import context_parallel_attention
    >>> x = torch.randn(1, 2, 7, 4)
    >>> def program(ranks):
    ...     parallel = ContextParallel(ranks, sharding="zigzag")
    ...     part = parallel.shard(x, axis=2).requires_grad_()
    ...     out = context_parallel_attention(part, part, part, is_causal=True, parallel=parallel)
    ...     out.sum().backward()
    ...     return tuple(part.grad.shape)
    >>> threads.run(2, program)
    [(1, 2, 3, 4), (1, 2, 4, 4)]
    """
    if not isinstance(parallel, ContextParallel):
        raise wrong_type("parallel", "a ContextParallel", type(parallel).__name__)
    try:
        tensors = _checked(ShardedTensors(query, key, value, attn_mask, sinks))
        if getattr(alibi_slopes, "requires_grad", False) and torch.is_grad_enabled():
            raise wrong("alibi_slopes", "slopes without a gradient (alibi_slopes.detach())", "one")
        slopes = None if alibi_slopes is None else torch.as_tensor(alibi_slopes).detach()
    except Exception as error:
        parallel.refuse(error)
    options = {
        "dropout_p": dropout_p,
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
        "window": window,
        "query_offset": query_offset,
        "key_lengths": key_lengths,
        "softcap": softcap,
        "alibi_slopes": slopes,
    }
    return attend_sharded(tensors, parallel, options, return_lse)


def _checked(tensors: ShardedTensors) -> ShardedTensors:
    """Return tensors in the dtype that autocast asks for, or raise."""
    names = ("query", "key", "value", "attn_mask", "sinks")
    if transformed():
        raise wrong("query", "a call outside of function transforms and torch.jit.trace", "one in")
    for name, x in zip(names, tensors, strict=True):
        if x is None:
            continue
        if not isinstance(x, torch.Tensor):
            raise wrong_type(name, "a tensor", type(x).__name__)
        if x.is_nested or not readable(x):
            got = f"{type(x).__name__} of {x.layout} on {x.device}"
            raise wrong(name, "a dense tensor in CPU memory, of no subclass", got)
    dtype = None
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    query, key, value = (
        x.to(dtype) if dtype is not None and x.dtype in NARROW else x for x in tensors[:3]
    )
    return tensors._replace(query=query, key=key, value=value)


def draw() -> int:
    """Draw dropout's seed from PyTorch's generator."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


def drawn_seed(parallel: ContextParallel) -> int:
    """Return the seed that rank 0 draws, on every rank."""
    drawn = np.array([draw() if parallel.rank == 0 else 0], np.int64)
    parallel.sum(drawn)
    return int(drawn[0])


def attend_sharded(
    tensors: ShardedTensors, parallel: ContextParallel, options: dict[str, Any], with_lse: bool
) -> Any:
    """Attend with options of `ContextParallel.attention`; a seed is drawn where there is need."""
    if options.get("seed") is None:
        options = options | {"seed": Drawn(draw)}
    if needs_grad(tensors):
        out, lse = _Sharded.apply(parallel, options, with_lse, *tensors)
        return (out, lse) if with_lse else out
    return _forward(tensors, parallel, options, return_lse=with_lse)


def _forward(
    tensors: ShardedTensors, parallel: ContextParallel, options: dict[str, Any], **results: bool
) -> Any:
    query, key, value, mask, sinks = (None if x is None else x.detach() for x in tensors)
    return parallel.attention(query, key, value, mask, sinks=sinks, **options, **results)


class _Sharded(torch.autograd.Function):
    """The call: gradients of query, key, value, float masks and sinks."""

    @staticmethod
    def forward(
        ctx: Any,
        parallel: ContextParallel,
        options: dict[str, Any],
        with_lse: bool,
        *given: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend."""
        tensors = ShardedTensors(*given)
        out, *lse, cache = _forward(
            tensors, parallel, options, return_lse=with_lse, return_cache=True
        )
        inputs = [x.detach() for x in tensors if x is not None]
        ctx.kept, apart = taken_apart(cache, inputs)
        own = [x for x in given if x is not None]
        ctx.save_for_backward(*own, *apart[len(own) :])
        ctx.parallel, ctx.with_lse = parallel, with_lse
        return out, (lse[0] if with_lse else None)

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor, d_lse: torch.Tensor | None) -> Any:
        """Return the gradients of all that `forward` took, in its order."""
        try:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "attention over several ranks has no second derivatives: expected "
                    "create_graph=False, got True"
                )
            if transformed() or batched(d_out) or batched(d_lse):
                raise wrong("d_out", "one gradient at a time", "several (is_grads_batched)")
            cache = put_together(ctx.kept, ctx.saved_tensors)
        except Exception as error:
            ctx.parallel.refuse(error)
        needed = ctx.needs_input_grad[3:]
        d_out = settled(d_out)
        d_query, d_key, d_value, *rest = ctx.parallel.attention_backward(
            d_out,
            cache,
            need_mask_grad=needed[3],
            need_sink_grad=needed[4],
            d_lse=settled(d_lse) if ctx.with_lse else None,
        )
        found, size = iter(rest), ctx.parallel.size
        d_mask = next(found) if needed[3] else None
        d_sinks = next(found) / size if needed[4] else None
        if d_mask is not None and shares_mask(cache):
            d_mask = d_mask / size
        return None, None, None, d_query, d_key, d_value, d_mask, d_sinks
