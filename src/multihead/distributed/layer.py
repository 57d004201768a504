"""A layer whose sequences are sharded: what `MultiheadAttention` computes, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from multihead.arguments import LayerParameters
from multihead.arrays import Array, Kind, decode, element_of, encode
from multihead.cache import IN_EVAL, NO_CALL, USED_UP
from multihead.checks import boolean, integer, wrong, wrong_type
from multihead.distributed.agreement import agree_all, digest
from multihead.distributed.attending import Attended, attend, attend_backward
from multihead.distributed.communicator import Communicator
from multihead.distributed.context_parallel import ContextParallel, Scheme
from multihead.distributed.given import Given, Options
from multihead.distributed.layer_heads import Batch, Turn, merge_heads, split_heads, turn_of
from multihead.distributed.layer_masks import LayerMasks
from multihead.distributed.places import Places, places
from multihead.distributed.projections import (
    Three,
    project,
    project_backward,
    project_out,
    project_out_backward,
)
from multihead.distributed.sharding import Sharding
from multihead.layouts import Dense, RaggedBatch
from multihead.masks import Mask, attention_mask, of_heads, padding_mask
from multihead.packed import Packing
from multihead.parameters import engine_arrays
from multihead.ragged import Ragged

if TYPE_CHECKING:
    from multihead.layer import MultiheadAttention

_NO_DROPOUT = (0.0, 0, 0)


class ParallelCache(NamedTuple):
    """What one training call leaves for backward on this rank; it refers to the inputs."""

    owner: object
    number: int
    batch: Batch
    masks: LayerMasks
    places: tuple[Places, Places]
    attended: Attended

    def __repr__(self) -> str:
        return f"ParallelCache(query={self.batch.shapes[0]}, key={self.batch.shapes[1]})"


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
                options["rope"] = digest(
                    np.frombuffer(str(layer.rope.to_dict()).encode(), np.uint8)
                )
            said = {name: repr(value)[:60] for name, value in options.items()}
            said |= {
                name: f"checksum {digest(x)} (load one state dict)"
                for name, x in layer._block.arrays.items()
            }
        except (TypeError, ValueError) as found:
            error = found
        self._agree(said, error)

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
            masks_given = key_padding_mask, attn_mask
            batch, padding, causal = self._taken_in(
                (query, key, value), masks_given, flags, (training, *dropout)
            )
            of_queries = places(self.parallel, _held(batch, 0), "query")
            of_keys = places(self.parallel, _held(batch, 1), "key")
            masks = self._masks(batch, padding, attn_mask, (of_queries, of_keys))
            given = self._projected(batch, masks, (of_queries, of_keys))
            options = self._options(batch, masks, causal, dropout)
            attended = attend(self.parallel, given, options)
        except BaseException:
            if dropout is not _NO_DROPOUT:
                layer._undraw(dropout)
            raise
        out = project_out(self._params(batch), merge_heads(batch, attended.out))
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
        call, d_rows, grads, wanted = self._given_back(d_out, cache, need_mask_grad)
        batch, sizes = call.batch, self.layer._sizes
        params, inputs = self._params(batch), self._inputs(batch, call.masks)
        compute = batch.element.compute
        shapes = self.layer._shapes
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])
        flat = np.zeros(ends[-1], compute)
        found = {
            name: flat[a:b].reshape(shape)
            for (name, shape), a, b in zip(shapes.items(), ends, ends[1:], strict=False)
        }

        # 2. The output projection.
        merged = merge_heads(batch, call.attended.out)
        d_merged = project_out_backward(params, merged, d_rows, found)

        # 3. Attention, with the keys of all ranks.
        need = wanted, sizes.sinks
        d_heads = attend_backward(call.attended, split_heads(batch, d_merged, sizes.heads), need)

        # 4. Heads turned back, and the projections of this rank's tokens.
        turns = self._turns(batch, call.places)
        d_three = [
            merge_heads(batch, x if turn is None else turn.back(x))
            for x, turn in zip(d_heads[:3], (*turns, None), strict=True)
        ]
        results = project_backward(
            params, sizes, inputs, (d_three[0], d_three[1], d_three[2]), found
        )

        # 5. The gradients of the parameters, added up over the ranks.
        if d_heads.extra is not None:
            for name, x in zip(("bias_k", "bias_v"), d_heads.extra, strict=True):
                found[name][...] = x.reshape(found[name].shape)
        self.parallel.sum(flat)
        if d_heads.sinks is not None:  # a sum over the ranks already
            found["sinks"][...] = d_heads.sinks * _share_of_sinks(params["sinks"], sizes.zero_row)
        of_masks: tuple[Any, ...] = ()
        if wanted:
            keys = call.places[1].positions
            shared = call.attended.shared
            of_masks = call.masks.gradients(self.parallel, d_heads.mask, shared, keys)
        self._add(found, grads)

        # 6. The cache is used up, and the results become the caller's kinds of arrays.
        if cache is None:
            self._held = USED_UP
        return (*batch.finish_gradients(results), *of_masks)

    def _agree(self, said: dict[str, Any], error: Exception | None) -> None:
        """Return if all ranks say the same and none has an error; else raise on all."""
        agree_all(self.parallel.communicators, said, error)

    def _taken_in(
        self,
        inputs: tuple[Any, Any, Any],
        masks: tuple[Any, Any],
        flags: tuple[Any, Any, Any],
        mode: tuple[bool, float, int, int],
    ) -> tuple[Batch, Mask | None, bool]:
        """Check what does not depend on the parts of others, and agree on it."""
        layer = self.layer
        said: dict[str, Any] = {}
        error: Exception | None = None
        batch: Batch | None = None
        padding: Mask | None = None
        causal = False
        try:
            if boolean("need_weights", flags[0]):
                way = "weights over all keys grow with the square of the length; the layer has them"
                raise wrong("need_weights", f"False ({way})", True)
            boolean("average_attn_weights", flags[1])
            causal = boolean("is_causal", flags[2])
            _check_axis(self.sequence_dim, layer.batch_first)
            if any(isinstance(x, Ragged) for x in inputs):
                batch = RaggedBatch(layer._element, layer._sizes, *inputs)
                batch.masks(masks[0], None)  # there is no padding
            else:
                batch = Dense(layer._element, layer._sizes, layer.batch_first, *inputs)
                columns = (batch.batch, batch.keys) if batch.batched else (batch.keys,)
                compute = batch.element.compute
                padding = padding_mask(masks[0], columns, compute, batch.tokens_first)
            said = {
                "batch": [type(batch).__name__, batch.tokens_first, batch.batched],
                "dtype": batch.element.name,
                "sequences": batch.batch,
                "key_padding_mask": None if padding is None else padding.array.dtype.name,
                "attn_mask": None if masks[1] is None else "a mask",
                "is_causal": causal,
                "training": mode[0],
                "dropout": mode[1],
                "rng_state": mode[2:],
                "calls before": self._calls,
            }
        except (TypeError, ValueError) as found:
            error = found
        self._agree(said, error)
        assert batch is not None
        if padding is not None:
            padding = padding._replace(array=padding.array.reshape(batch.batch, batch.keys))
        return batch, padding, causal

    def _masks(
        self, batch: Batch, padding: Mask | None, attn_mask: Any, at: tuple[Places, Places]
    ) -> LayerMasks:
        """Check the rows of attn_mask against the keys of all ranks; gather padding."""
        attn: Mask | None = None
        if attn_mask is not None:
            error: Exception | None = None
            queries = at[0].longest if isinstance(batch, RaggedBatch) else batch.queries
            scores = (batch.batch, self.layer.num_heads, queries, at[1].longest)
            try:
                attn = attention_mask(attn_mask, scores, batch.element.compute)
            except (TypeError, ValueError) as found:
                error = found
            self._agree({}, error)
        whole = None if padding is None else self.parallel.gather(padding.array, axis=1)
        return LayerMasks(padding, whole, attn)

    def _projected(self, batch: Batch, masks: LayerMasks, at: tuple[Places, Places]) -> Given:
        """Return heads of queries, keys and values of this rank's tokens."""
        sizes, element = self.layer._sizes, batch.element
        three = project(self._params(batch), sizes, self._inputs(batch, masks))
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
        params, extra = self._params(batch), None
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
            sinks=_all_sinks(params.get("sinks"), sizes.heads if sizes.zero_row else 0, compute),
            seed=seed if p else None,
            counter=counter,
            extra=extra,
        )

    def _params(self, batch: Batch) -> dict[str, Array]:
        """Return the parameters in the dtype computed in."""
        layer, bits = self.layer, self.layer.dtype == "bfloat16"
        arrays = layer._block.arrays
        if not layer._element.half:
            return arrays
        compute = batch.element.compute
        return {name: decode(x, compute, bits) for name, x in arrays.items()}

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

    def _given_back(
        self, d_out: Any, cache: Any, need_mask_grad: Any
    ) -> tuple[ParallelCache, Array, LayerParameters, bool]:
        """Check what backward is given, and agree on it."""
        said: dict[str, Any] = {}
        error: Exception | None = None
        call: ParallelCache | None = None
        d_rows: Array | None = None
        grads: LayerParameters | None = None
        wanted = False
        try:
            wanted = boolean("need_mask_grad", need_mask_grad)
            call = self._usable(self._held if cache is None else cache)
            d_rows, _ = call.batch.read_d_out(d_out)
            if call.batch.element.half:
                bits = call.batch.element.name == "bfloat16"
                d_rows = decode(d_rows, call.batch.element.compute, bits)
            grads, _ = self.layer._grads_now()
            said = {"need_mask_grad": wanted, "cache": f"of call {call.number}"}
        except (TypeError, ValueError) as found:
            error = found
        self._agree(said, error)
        assert call is not None
        assert d_rows is not None
        assert grads is not None
        return call, d_rows, grads, wanted

    def _usable(self, cache: Any) -> ParallelCache:
        if isinstance(cache, str):
            raise wrong("cache", "one of a call in training mode", f"none: {cache}")
        if not isinstance(cache, ParallelCache):
            expected = "the cache that a training call left"
            raise wrong("cache", expected, type(cache).__name__)
        if cache.owner is not self._token:
            raise wrong("cache", "one that a call of this object left", "one of another")
        return cache

    def _add(self, found: dict[str, Array], grads: LayerParameters) -> None:
        """Add sums over the ranks to `grads`, in the dtype of these."""
        of_grads = self.layer._of_grads
        bits = of_grads.name == "bfloat16"
        with self.layer._lock:
            for x, to in zip(engine_arrays(found), grads, strict=True):
                if to is None:
                    continue
                if of_grads.half:
                    x = encode(decode(to, of_grads.compute, bits) + x, of_grads.stored, bits)
                    to[...] = x
                else:
                    to += x


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
        communicator = ContextParallel(communicator, scheme, sharding, ring)
    elif (scheme, sharding, ring) != ("ring", "contiguous", None):
        raise wrong_type("scheme, sharding, ring", "nothing: the ContextParallel has them", "some")
    return ParallelAttention(layer, communicator, sequence_dim)


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


def _held(batch: Batch, which: int) -> Array:
    """Return how many queries or keys of each sequence this rank has; of a dense batch one."""
    if batch.offsets is not None:
        return np.diff(batch.offsets[which])
    return np.array([(batch.queries, batch.keys)[which]])


def _all_sinks(sinks: Array | None, zero_rows: int, compute: np.dtype[Any]) -> Array | None:
    """Return the sinks with the zero row, whose score is 0 for each of so many heads."""
    if not zero_rows:
        return sinks
    if sinks is None:
        return np.zeros(zero_rows, compute)
    return np.logaddexp(sinks.astype(np.float64), 0.0).astype(compute)


def _share_of_sinks(sinks: Array, zero_row: bool) -> Array | float:
    """Return what of the gradient of `_all_sinks` is that of the sinks."""
    if not zero_row:
        return 1.0
    with np.errstate(over="ignore"):
        share: Array = 1 / (1 + np.exp(-sinks.astype(np.float64)))
    return share
