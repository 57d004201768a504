"""A layer whose sequences are sharded: what `MultiheadAttention` computes, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from multihead.arrays import Array, Kind, decode, element_of
from multihead.cache import IN_EVAL, NO_CALL, USED_UP
from multihead.checks import wrong_type
from multihead.distributed.agreement import agree_all
from multihead.distributed.attending import attend, attend_backward
from multihead.distributed.communicator import Alone, Communicator
from multihead.distributed.context_parallel import ContextParallel, Scheme
from multihead.distributed.given import Given, Options
from multihead.distributed.layer_agreement import (
    Shared,
    Taken,
    agree_on_layer,
    take_back,
    take_in,
    take_mask,
)
from multihead.distributed.layer_cache import ParallelCache
from multihead.distributed.layer_heads import Batch, Turn, merge_heads, split_heads, turn_of
from multihead.distributed.layer_masks import LayerMasks
from multihead.distributed.layer_parameters import (
    add_gradients,
    all_sinks,
    no_gradients,
    parameters_of,
    share_of_sinks,
)
from multihead.distributed.places import Places, places
from multihead.distributed.projections import (
    Three,
    project,
    project_backward,
    project_out,
    project_out_backward,
)
from multihead.distributed.sharding import Sharding
from multihead.masks import of_heads
from multihead.packed import Packing

if TYPE_CHECKING:
    from multihead.layer import MultiheadAttention

_NO_DROPOUT = (0.0, 0, 0)


class ParallelAttention:
    """A layer on ranks that hold a part of every sequence each.

    What `MultiheadAttention.parallel` returns. It computes what the layer computes for whole
    sequences, with the layer's own parameters, `grads`, mode and random state; all ranks call it
    together.

    Parameters
    ----------
    layer : MultiheadAttention
        Of the same options and parameters on every rank, and each rank's own: ranks that are
        threads do not share one.
    parallel : ContextParallel
    sequence_dim : int, optional
        Which axis of batched inputs is that of the tokens: 1 with `batch_first`, else 0.

    Attributes
    ----------
    layer, parallel, sequence_dim
        As given.
    cache : object or None
        What the last call left for `backward`.

    Raises
    ------
    ValueError
        If `sequence_dim` is another axis, there are fewer heads than ranks to exchange them, or
        options or parameters differ between ranks.

    See Also
    --------
    multihead.MultiheadAttention.parallel, ContextParallel

    Notes
    -----
    Each rank projects its own tokens, and sends keys and values in the dtype computed in: float32
    for float16 and bfloat16, of which nothing is rounded but results. In backward the gradients of
    the parameters are added up over the ranks in one array and in a fixed order, so that `grads`
    has the same bits on all of them.

    Examples
    --------
    >>> import numpy as np
    >>> import multihead as mh
    >>> from multihead.distributed import threads
    >>> x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    >>> def program(ranks):
    ...     layer = mh.MultiheadAttention(8, 2, batch_first=True, seed=0)  # alike on all ranks
    ...     attention = layer.parallel(ranks)
    ...     part = attention.parallel.shard(x, axis=1)
    ...     out, _ = attention(part, part, part, is_causal=True)
    ...     d_query, d_key, d_value = attention.backward(np.ones_like(out))
    ...     return out.shape, float(layer.grads["out_proj.bias"][0])
    >>> threads.run(2, program)
    [((2, 5, 8), 18.0), ((2, 4, 8), 18.0)]
    """

    def __init__(
        self,
        layer: MultiheadAttention,
        parallel: ContextParallel,
        sequence_dim: int | None = None,
    ) -> None:
        self.layer, self.parallel, self.sequence_dim = layer, parallel, sequence_dim
        self._token, self._calls = object(), 0
        self._held: ParallelCache | str = NO_CALL
        agree_on_layer(self._shared)

    @property
    def _shared(self) -> Shared:
        return Shared(self.layer, self.parallel, self.sequence_dim)

    def __repr__(self) -> str:
        return f"ParallelAttention({self.layer!r}, {self.parallel!r})"

    @property
    def grads(self) -> dict[str, Array]:
        """Those of the layer."""
        return self.layer.grads

    @property
    def training(self) -> bool:
        """The mode of the layer."""
        return self.layer.training

    @property
    def rng_state(self) -> tuple[int, int]:
        """That of the layer."""
        return self.layer.rng_state

    def train(self, mode: bool = True) -> ParallelAttention:
        """Switch the layer to training mode, or to eval mode with False; return this object."""
        self.layer.train(mode)
        return self

    def eval(self) -> ParallelAttention:
        """Switch the layer to eval mode, without dropout and without a cache."""
        return self.train(False)

    @property
    def cache(self) -> Any:
        """What the last call left for `backward`, or None."""
        return None if isinstance(self._held, str) else self._held

    def __call__(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = False,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, None]:
        """Attend from this rank's queries to the keys of all ranks.

        Parameters
        ----------
        query : array of shape (L_r, N, E), (N, L_r, E) with `batch_first`, or (L_r, E)
            The tokens that this rank holds, see `ContextParallel.shard`; or a `Ragged` of its
            tokens of each sequence, as key and value then are too.
        key : array of shape (S_r, N, kdim), (N, S_r, kdim) or (S_r, kdim)
        value : array of shape (S_r, N, vdim), (N, S_r, vdim) or (S_r, vdim)
        key_padding_mask : array of shape (N, S_r) or (S_r,), bool or floating, optional
            Of this rank's keys: **True = ignore**; floats are added to the scores.
        need_weights : bool, default False
            Only False: weights over all keys grow with the square of the length.
        attn_mask : array, bool or floating, optional
            (L_r, S), (N * H, L_r, S), or 4-D and broadcastable to (N, H, L_r, S): rows of this
            rank's queries, a column for every key, in the order of positions. **True = ignore**;
            floats are added to the scores. For ragged inputs whole, and the same on every rank.
        average_attn_weights : bool, default True
            Without effect, as there are no weights.
        is_causal : bool, default False
            Query i of the whole sequence attends to keys j <= i only, besides what masks say.

        Returns
        -------
        out : array shaped like query, or Ragged
        weights : None

        Raises
        ------
        ValueError
            On every rank, if an argument is wrong on one of them or differs between them.
        TypeError
            On this rank if an argument is of a wrong type; on others it is a ValueError that says
            so.
        TimeoutError, ConnectionError
            If another rank does not answer in the communicator's time, or is gone.

        Notes
        -----
        In training mode `cache` then holds what `backward` needs, and refers to inputs and masks.
        Dropout draws what the layer would for the whole: `rng_state` has to be the same on all
        ranks. Padding masks are gathered, a byte or a float for each of the N * S keys; with an
        `attn_mask` besides, both are joined to (N, 1 or H, L_r, S).

        Examples
        --------
        >>> import numpy as np
        >>> import multihead as mh
        >>> from multihead.distributed import threads
        >>> def program(ranks):
        ...     attention = mh.MultiheadAttention(8, 2, seed=0).eval().parallel(ranks)
        ...     part = np.ones((3, 1, 8), np.float32)  # 6 tokens in all
        ...     hides = np.triu(np.ones((6, 6), bool), 1)
        ...     out, _ = attention(part, part, part, attn_mask=attention.parallel.shard(hides, 0))
        ...     return out.shape
        >>> threads.run(2, program)
        [(3, 1, 8), (3, 1, 8)]
        """
        layer, training = self.layer, self.layer.training
        dropout = layer._draw() if training and layer.dropout else _NO_DROPOUT
        try:
            flags = need_weights, average_attn_weights, is_causal
            mode = {"training": training, "dropout": dropout[0], "rng_state": dropout[1:]}
            mode["calls before"] = self._calls
            masks_given = key_padding_mask, attn_mask
            taken = take_in(self._shared, (query, key, value), masks_given, flags, mode)
            batch = taken.batch
            of_queries = places(self.parallel, _held(batch, 0), "query")
            of_keys = places(self.parallel, _held(batch, 1), "key")
            masks = self._masks(taken, attn_mask, (of_queries, of_keys))
            given = self._projected(batch, masks, (of_queries, of_keys))
            options = self._options(batch, masks, taken.causal, dropout)
            attended = attend(self.parallel, given, options)
            params = parameters_of(layer, batch.element.compute)
            out = project_out(params, merge_heads(batch, attended.out))
        except BaseException:
            if dropout is not _NO_DROPOUT:
                layer._undraw(dropout)
            raise
        self._held = IN_EVAL
        self._calls += 1
        if training:
            rest = (masks, (of_queries, of_keys), attended)
            self._held = ParallelCache(self._token, self._calls, batch, *rest)
        return batch.finish_out(out), None

    def backward(
        self, d_out: Any, *, cache: Any = None, need_mask_grad: bool = False
    ) -> tuple[Any, ...]:
        """Return the gradients of this rank's inputs; add those of the parameters to `grads`.

        All ranks call it together. What is added to `grads` is the sum over the queries of all
        ranks, and has the same bits on each.

        Parameters
        ----------
        d_out : array shaped like the output, or Ragged
            Gradient of the output, of its dtype.
        cache : object, optional
            A `cache` that a training call of this object left, which is only read. Without it,
            `self.cache` is used and set to None.
        need_mask_grad : bool, default False
            Append the gradients of `attn_mask` and `key_padding_mask`.

        Returns
        -------
        d_query, d_key, d_value : array or Ragged
            Of this rank's tokens, from the queries of all ranks.
        d_attn_mask, d_key_padding_mask : array or None
            With `need_mask_grad` only: of this rank's rows and of its keys, None where a mask was
            absent or boolean. Of an `attn_mask` that all queries share, and for ragged inputs, the
            sum over all ranks.

        Raises
        ------
        ValueError, TypeError, TimeoutError, ConnectionError
            As a call, and if there is no cache. `grads` is as it was.

        Examples
        --------
        >>> import numpy as np
        >>> import multihead as mh
        >>> from multihead.distributed import threads
        >>> def program(ranks):
        ...     attention = mh.MultiheadAttention(8, 2, seed=0).parallel(ranks)
        ...     part = np.ones((3, 8), np.float32)  # 6 tokens of one sequence in all
        ...     bias = np.zeros((3, 6), np.float32)
        ...     out, _ = attention(part, part, part, attn_mask=bias)
        ...     *_, d_bias, _ = attention.backward(out, need_mask_grad=True)
        ...     return d_bias.shape
        >>> threads.run(2, program)
        [(3, 6), (3, 6)]
        """
        # 1. Everything that comes in is checked, on all ranks, before anything is written.
        used = self._held if cache is None else cache
        given = take_back(self._shared, used, self._token, d_out, need_mask_grad)
        call, layer = given.call, self.layer
        batch, sizes, compute = call.batch, layer._sizes, call.batch.element.compute
        params, inputs = parameters_of(layer, compute), self._inputs(batch, call.masks)
        found = no_gradients(layer._shapes, compute)

        # 2. The output projection.
        merged = merge_heads(batch, call.attended.out)
        d_merged = project_out_backward(params, merged, given.d_rows, found.of)

        # 3. Attention, with the keys of all ranks.
        need = given.of_masks, sizes.sinks
        d_heads = attend_backward(call.attended, split_heads(batch, d_merged, sizes.heads), need)

        # 4. Heads turned back, and the projections of this rank's tokens.
        turns = self._turns(batch, call.places)
        d_three = [
            merge_heads(batch, x if turn is None else turn.back(x))
            for x, turn in zip(d_heads[:3], (*turns, None), strict=True)
        ]
        results = project_backward(
            params, sizes, inputs, (d_three[0], d_three[1], d_three[2]), found.of
        )

        # 5. The gradients of the parameters, added up over the ranks.
        if d_heads.extra is not None:
            for name, x in zip(("bias_k", "bias_v"), d_heads.extra, strict=True):
                found.of[name][...] = x.reshape(found.of[name].shape)
        self.parallel.sum(found.flat)
        if d_heads.sinks is not None:  # a sum over the ranks already
            share = share_of_sinks(params["sinks"], sizes.zero_row)
            found.of["sinks"][...] = d_heads.sinks * share
        of_masks: tuple[Any, ...] = ()
        if given.of_masks:
            keys = call.places[1].positions
            shared = call.attended.shared
            of_masks = call.masks.gradients(self.parallel, d_heads.mask, shared, keys)

        # 6. The results become the caller's kinds of arrays, and the cache is used up.
        shown = (*batch.finish_gradients(results), *of_masks)
        add_gradients(layer, found, given.grads)
        if cache is None:
            self._held = USED_UP
        return shown

    def _masks(self, taken: Taken, attn_mask: Any, at: tuple[Places, Places]) -> LayerMasks:
        """Check attn_mask against the keys of all ranks; gather padding."""
        attn = take_mask(self._shared, attn_mask, taken.batch, (at[0].longest, at[1].longest))
        padding = taken.padding
        whole = None if padding is None else self.parallel.gather(padding.array, axis=1)
        return LayerMasks(padding, whole, attn)

    def _projected(self, batch: Batch, masks: LayerMasks, at: tuple[Places, Places]) -> Given:
        """Return heads of queries, keys and values of this rank's tokens."""
        sizes, element = self.layer._sizes, batch.element
        params = parameters_of(self.layer, element.compute)
        three = project(params, sizes, self._inputs(batch, masks))
        counts = (sizes.heads, sizes.key_heads, sizes.key_heads)
        q, k, v = (split_heads(batch, x, h) for x, h in zip(three, counts, strict=True))
        turn_q, turn_k = self._turns(batch, at)
        if turn_q is not None and turn_k is not None:
            q, k = turn_q.there(q), turn_k.there(k)
        kind = Kind(element.compute)
        packing = None if batch.offsets is None else Packing(*batch.offsets)
        shapes = q.shape, k.shape, v.shape
        wide = element_of(element.compute)
        return Given(wide, (q, k, v), (kind, kind, kind), shapes, packing, of_heads)

    def _options(
        self, batch: Batch, masks: LayerMasks, causal: bool, dropout: tuple[float, int, int]
    ) -> Options:
        """Return what there is to say of attention."""
        layer, sizes, compute = self.layer, self.layer._sizes, batch.element.compute
        params, extra = parameters_of(layer, compute), None
        if sizes.bias_key:
            shape = (1, sizes.key_heads, 1, sizes.head)
            extra = params["bias_k"].reshape(shape), params["bias_v"].reshape(shape)
        p, seed, counter = dropout
        return Options(
            masks.joined((batch.batch, sizes.heads)),
            p,
            causal,
            enable_gqa=True,
            window=layer.window,
            softcap=layer.softcap,
            alibi_slopes=layer._rules.slopes(sizes.heads, compute),
            sinks=all_sinks(params.get("sinks"), sizes.heads if sizes.zero_row else 0, compute),
            seed=seed if p else None,
            counter=counter,
            extra=extra,
        )

    def _inputs(self, batch: Batch, masks: LayerMasks) -> Three:
        """Return the inputs in the dtype computed in, 0 where they are not to be read."""
        element, known = batch.element, dict[int, Array]()
        for x in batch.inputs:
            if id(x) not in known:
                bits = element.name == "bfloat16"
                known[id(x)] = decode(x, element.compute, bits) if element.half else x
        q, k, v = (known[id(x)] for x in batch.inputs)
        hidden = masks.hidden
        if hidden is not None:
            hidden = hidden.T if batch.tokens_first else hidden.reshape(k.shape[:-1])
            same = k is v
            k = np.where(hidden[..., None], k.dtype.type(0), k)
            v = k if same else np.where(hidden[..., None], v.dtype.type(0), v)
        return q, k, v

    def _turns(
        self, batch: Batch, at: tuple[Places, Places]
    ) -> tuple[Turn, Turn] | tuple[None, None]:
        """Return how queries and keys are turned."""
        rope, width = self.layer.rope, self.layer.head_dim
        if rope is None:
            return None, None
        longest, like = max(x.longest for x in at), (batch, batch.element.compute)
        of_q, of_k = (turn_of(rope, width, longest, x.positions, like) for x in at)
        return of_q, of_k


def parallel_attention(
    layer: MultiheadAttention,
    communicator: Communicator | ContextParallel,
    sequence_dim: int | None,
    scheme: Scheme,
    sharding: Sharding,
    ring: Communicator | None,
) -> ParallelAttention:
    """Do what `MultiheadAttention.parallel` says."""
    if not isinstance(communicator, ContextParallel):
        try:
            communicator = ContextParallel(communicator, scheme, sharding, ring)
        except (TypeError, ValueError) as error:
            ranks = [x for x in (ring, communicator) if isinstance(x, Communicator)]
            agree_all(ranks or [Alone()], {}, error)
            raise
    elif (scheme, sharding, ring) != ("ring", "contiguous", None):
        raise wrong_type("scheme, sharding, ring", "nothing: the ContextParallel has them", "some")
    return ParallelAttention(layer, communicator, sequence_dim)


def _held(batch: Batch, which: int) -> Array:
    """Return how many queries or keys of each sequence this rank has; of a dense batch one."""
    if batch.offsets is not None:
        return np.diff(batch.offsets[which])
    return np.array([(batch.queries, batch.keys)[which]])
