"""The layer: torch's MultiheadAttention on NumPy arrays, with its backward."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from multihead import _native
from multihead.arguments import LayerOptions, LayerTensors
from multihead.arrays import Array
from multihead.cache import IN_EVAL, USED_UP, LayerCache, MaskArrays, usable
from multihead.checks import boolean, wrong, wrong_type
from multihead.decoding import check_cache, step
from multihead.kv_cache import KVCache
from multihead.layer_rules import layer_rules
from multihead.layouts import Dense, GivenOnce, RaggedBatch, Sizes, given_once
from multihead.locks import turn_of
from multihead.ragged import Ragged
from multihead.score_rules import Window
from multihead.seeds import Seed, seed_from
from multihead.signatures import layer_backward, layer_call, layer_init, typed_as
from multihead.state import LayerState, SizeOptions, checked_sizes
from multihead.suggestions import shown_without_unknown, unknown

if TYPE_CHECKING:
    from multihead.distributed import Communicator, ContextParallel, ParallelAttention
    from multihead.distributed.context_parallel import Scheme
    from multihead.distributed.sharding import Sharding

_NO_DROPOUT = (0.0, 0, 0)


@functools.lru_cache(maxsize=256)  # to make one takes longer than the smallest attention
def _options_without_dropout(
    dtype: str,
    sizes: Sizes,
    rules: tuple[float, int, int, bool],
    causal: bool,
    average: bool | None,
    tokens_first: bool,
) -> LayerOptions:
    softcap, left, right, interleaved = rules
    return LayerOptions(
        dtype=dtype,
        num_heads=sizes.heads,
        key_heads=sizes.key_heads,
        head_dim=sizes.head,
        zero_row=sizes.zero_row,
        causal=causal,
        average=average,
        tokens_first=tokens_first,
        dropout_p=0.0,
        seed=None,
        softcap=softcap,
        window_left=left,
        window_right=right,
        interleaved=interleaved,
    )


class MultiheadAttention(LayerState):
    """Multi-head attention, forward and backward, with the interface of torch's layer.

    Implements Vaswani et al., "Attention Is All You Need" (2017): ``MultiHead(Q, K, V) =
    Concat(head_1, ..., head_H) W_O`` with ``head_i = Attention(Q W_Q, K W_K, V W_V)``. Parameters,
    arguments, shapes and state dict are those of ``torch.nn.MultiheadAttention``.

    Parameters
    ----------
    embed_dim : int
        E, the width of query and output. A multiple of `num_heads`, unless `head_dim` is given.
    num_heads : int
        H; each head has dimension ``D = E / H``.
    dropout : float, default 0.0
        Probability of dropping an attention weight in training, from 0 to 1.
    bias : bool, default True
        Whether the input and output projections have biases.
    add_bias_kv : bool, default False
        Append learned ``bias_k`` and ``bias_v`` to the projected keys and values.
    add_zero_attn : bool, default False
        Append a zero key with a zero value.
    kdim, vdim : int, optional
        Widths of key and value; E by default.
    batch_first : bool, default False
        Batched arrays are (N, L, E) rather than (L, N, E).
    device : None or "cpu"
    dtype : dtype or str, optional
        float32 (default), float64, float16 or bfloat16, of parameters, inputs and results. A
        float32 layer also takes inputs of float16 and bfloat16: results are then of the dtype of
        these, parameters and `grads` stay float32, as an optimizer of mixed precision wants them.
    grad_dtype : dtype or str, optional
        Of `grads`: float32, or float64 for a float64 layer. A float16 or bfloat16 layer may have
        its own dtype instead: half the memory, and every ``backward`` rounds the sums so far.
    num_kv_heads : int, optional
        Hk, a divisor of `num_heads`: H / Hk heads of queries side by side share a head of keys and
        values. H by default.
    head_dim : int, optional
        D, if it is not E / H.
    window : int or tuple of two int or None, optional
        Query i sees keys from ``i - left`` to ``i + right`` only; None is no limit, an int w means
        (w, w).
    softcap : float, optional
        Scores s become ``softcap * tanh(s / softcap)`` before masks and ALiBi.
    alibi : bool, default False
        Scores fall by a slope of their head, ``multihead.functional.alibi_slopes``, times the
        distance from query to key.
    sinks : bool, default False
        A learned score for each head, `sinks`, joins the softmax and has no value.
    rope : Rope or tuple (cos, sin), optional
        Rotary positions: queries and keys are turned after their projection.
    seed : int, numpy.random.Generator or numpy.random.SeedSequence, optional
        From 0 to 2**64 - 1, or where to take it from, of the initial parameters and of dropout.
        Drawn from the system when not given.

    Attributes
    ----------
    in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight : ndarray or None
        Either the first or, where not all three are (E, E), the others.
    in_proj_bias, bias_k, bias_v, sinks : ndarray or None
    out_proj : object
        With `weight` and `bias`.
    grads : dict of str to ndarray
        Gradients of the parameters, added up over backward calls.
    training : bool
        Set by `train` and `eval`. Dropout acts, and a cache is kept, in training only.
    cache : object or None
        What the last call of this thread left for `backward`.
    rng_state : tuple of int
        (seed, counter) of dropout.

    Raises
    ------
    ValueError
        If a size is not positive or does not divide what it must, `dropout` is not in [0, 1], an
        option of the scores is out of its range or `device` is another one.
    TypeError
        If `dtype` or `grad_dtype` is another one or a size is not an integer.

    Notes
    -----
    A query that every key is hidden from has attention output 0 (the layer's output is then
    ``out_proj.bias``), weights 0 and gradients 0. Boolean masks say **True = ignore**, which is the
    opposite of `multihead.functional.scaled_dot_product_attention`.

    Threads may call one layer at the same time, in training too. Each call draws a dropout mask of
    its own, `cache` is each thread's own, and `backward` calls take turns, so that `grads` holds
    the sum of them all. Parameters, options and the mode are not to be changed meanwhile.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html

    Examples
    --------
    >>> import numpy as np
    >>> import multihead as mh
    >>> layer = mh.MultiheadAttention(8, 2, batch_first=True, seed=0)
    >>> x = np.ones((3, 5, 8), np.float32)
    >>> out, weights = layer(x, x, x)
    >>> out.shape, weights.shape
    ((3, 5, 8), (3, 5, 5))
    >>> d_query, d_key, d_value = layer.backward(np.ones_like(out))
    >>> d_query.shape, layer.grads["out_proj.bias"][0]
    ((3, 5, 8), np.float32(15.0))
    """

    @typed_as(layer_init)
    @shown_without_unknown
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        window: Window = None,
        softcap: float | None = None,
        alibi: bool = False,
        sinks: bool = False,
        rope: Any = None,
        grad_dtype: Any = None,
        seed: Seed = None,
        **unknown_options: Any,
    ) -> None:
        if unknown_options:
            raise unknown(MultiheadAttention.__init__, unknown_options)
        if device is not None and str(device) != "cpu":
            raise wrong("device", 'None or "cpu"', repr(device))
        of_torch = (embed_dim, num_heads, bias, add_bias_kv, add_zero_attn, kdim, vdim)
        sizes = checked_sizes(SizeOptions(*of_torch, num_kv_heads, head_dim, sinks))
        rules = layer_rules(sizes.head, window, softcap, alibi, rope)
        super().__init__(sizes, rules, dropout, batch_first, dtype, grad_dtype)
        self.rng_state = (seed_from(seed), 0)
        self._initialise(np.random.default_rng(self.rng_state[0]))

    @typed_as(layer_call)
    @shown_without_unknown
    def __call__(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        kv_cache: KVCache | None = None,
        **unknown_options: Any,
    ) -> tuple[Any, Any]:
        """Attend from query to key and value.

        Parameters
        ----------
        query : array of shape (L, N, E), (N, L, E) with `batch_first`, or (L, E)
            A NumPy array or any CPU array that speaks DLPack, of the layer's dtype (float16 and
            bfloat16 fit a float32 layer too) and of any strides; or a `Ragged`, as key and value
            then are too, for which `batch_first` does not count. Passing one object as query, key
            and value projects it in one go.
        key : array of shape (S, N, kdim), (N, S, kdim) or (S, kdim)
            Of the dtype of `query`, as `value` is.
        value : array of shape (S, N, vdim), (N, S, vdim) or (S, vdim)
        key_padding_mask : array of shape (N, S) or (S,), bool or floating, optional
            Keys to ignore: **True = ignore**; floats are added to the scores. A hidden key (True,
            or -inf) is not read. An error with ragged inputs.
        need_weights : bool, default True
            Return the attention weights too.
        attn_mask : array, bool or floating, optional
            (L, S), (N * H, L, S), or 4-D and broadcastable to (N, H, L, S); unbatched, N is 1.
            **True = ignore**; floats are added to the scores. For ragged inputs L and S are the
            greatest lengths, and the mask is cut top-left for each sequence. Floats of another
            precision are cast to the one computed in, and stay finite where they are.
        average_attn_weights : bool, default True
            Average the weights over the heads.
        is_causal : bool, default False
            Query i attends to keys j <= i only, besides what masks say. No mask is needed.
        kv_cache : KVCache, optional
            In eval mode: query, key and value are new tokens after those that the cache holds.
            Their keys and values are appended to it, and queries attend to all from their places.
            S in `attn_mask` and in the weights is then the number of keys of the longest sequence.

        Returns
        -------
        out : array shaped like query, or Ragged
            Of the kind and dtype of `query`.
        weights : array or None
            (N, L, S') or, per head, (N, H, L, S'), without N when unbatched; S' is S and the
            columns of `bias_k` and the zero row. After dropout. For ragged inputs a list of N
            arrays (L_n, S'_n) or (H, L_n, S'_n). None without `need_weights`.

        Raises
        ------
        ValueError
            If a shape does not fit or an array is not in CPU memory.
        TypeError
            If an argument is no array, or of another dtype, or a flag is no bool.

        Warns
        -----
        MaskWarning
            If a mask, one of the first four, seems to be one of the opposite meaning.

        Notes
        -----
        In training mode `cache` then holds what `backward` needs. It refers to inputs and masks:
        changing them in place before `backward` makes its results wrong. Parameters count as they
        are when `backward` is called. In eval mode `cache` is None afterwards.

        Examples
        --------
        >>> import numpy as np
        >>> import multihead as mh
        >>> layer = mh.MultiheadAttention(8, 2, seed=0).eval()
        >>> x, memory = np.ones((5, 3, 8), np.float32), np.ones((7, 3, 8), np.float32)
        >>> out, weights = layer(x, memory, memory, average_attn_weights=False)
        >>> out.shape, weights.shape
        ((5, 3, 8), (3, 2, 5, 7))
        """
        # 1. Arguments: types, shapes and dtypes are checked, nothing is copied.
        if unknown_options:
            raise unknown(MultiheadAttention.__call__, unknown_options)
        if not type(need_weights) is type(average_attn_weights) is type(is_causal) is bool:
            need_weights = boolean("need_weights", need_weights)
            average_attn_weights = boolean("average_attn_weights", average_attn_weights)
            is_causal = boolean("is_causal", is_causal)
        if kv_cache is not None:
            masks = key_padding_mask, attn_mask
            average = average_attn_weights if need_weights else None
            return self._step((query, key, value), kv_cache, masks, average, is_causal)
        batch: Dense | RaggedBatch
        if isinstance(query, Ragged) or isinstance(key, Ragged) or isinstance(value, Ragged):
            batch = RaggedBatch(self._element, self._sizes, query, key, value)
        else:
            batch = Dense(self._element, self._sizes, self._batch_first, query, key, value)
        padding, attn = batch.masks(key_padding_mask, attn_mask)
        if (padding is not None or attn is not None) and self._watch.left:
            given = {"key_padding_mask": padding, "attn_mask": attn}
            arrays = {name: mask.array for name, mask in given.items() if mask is not None}
            self._watch.look(arrays, batch.queries, self._sizes.extra_keys > 0)

        # 2. Outputs, in the caller's layout and as the engine writes them.
        out = batch.new_out()
        average = average_attn_weights if need_weights else None
        weights: Any = None
        weights_memory: Array | None = None
        if average is not None:
            weights, weights_memory = batch.new_weights(average)

        # 3. The engine.
        training = self._training
        dropout = self._draw() if training and self._dropout else _NO_DROPOUT
        masks = padding and padding.array, attn and attn.array
        try:
            native = _native.layer_forward(
                self._options(batch, is_causal, average, dropout),
                self._tensors(batch, given_once(*batch.inputs), masks),
                batch.offsets,
                out,
                weights_memory,
                training,
            )
        except BaseException:
            if dropout is not _NO_DROPOUT:
                self._undraw(dropout)
            raise

        # 4. What backward needs, and the results as the caller's kind of arrays.
        if native is None:
            self._slot.held = IN_EVAL
        else:
            kept = (padding, attn)
            cache = LayerCache(self._token, batch, kept, is_causal, dropout, average, native)
            self._slot.held = cache
        return batch.finish_out(out), None if weights is None else batch.finish_weights(weights)

    @typed_as(layer_backward)
    def backward(
        self,
        d_out: Any,
        d_weights: Any = None,
        *,
        cache: Any = None,
        out: Any = None,
        need_mask_grad: bool = False,
    ) -> tuple[Any, ...]:
        """Return the gradients of the inputs and add those of the parameters to `grads`.

        Parameters
        ----------
        d_out : array shaped like the output, or Ragged
            Gradient of the output, of its dtype.
        d_weights : array shaped like the returned weights, optional
            Their gradient; a list of N arrays for ragged inputs.
        cache : object, optional
            A `cache` that a training call of this layer left, which is only read and can be used
            again: this is how one layer serves several times in a model. Without it, `self.cache`
            is used and set to None.
        out : tuple of three arrays, optional
            Where to write the gradients of query, key and value: writable, shaped like those and of
            their dtype (`Ragged` for ragged inputs); None skips one. An array given twice
            receives the sum. Any other overlap of memory, with each other or with an array that is
            read, is an error.
        need_mask_grad : bool, default False
            Append the gradients of `attn_mask` and `key_padding_mask`.

        Returns
        -------
        d_query, d_key, d_value : array or Ragged
            Shaped like the inputs and of their kinds; the tuple `out` if that was given.
        d_attn_mask, d_key_padding_mask : array or None
            With `need_mask_grad` only: in the shape and dtype of the masks, None where a mask was
            absent or boolean.

        Raises
        ------
        ValueError
            If there is no cache, a shape does not fit or memory overlaps. Nothing has been changed.
        TypeError
            If an argument is no array, or of another dtype. Nothing has been changed.

        Examples
        --------
        >>> import numpy as np
        >>> import multihead as mh
        >>> layer = mh.MultiheadAttention(8, 2, seed=0)
        >>> x, bias = np.ones((5, 8), np.float32), np.zeros((5, 5), np.float32)
        >>> out, _ = layer(x, x, x, attn_mask=bias)
        >>> d_x = np.empty_like(x)
        >>> *_, d_bias, _ = layer.backward(out, out=(d_x, d_x, d_x), need_mask_grad=True)
        >>> d_bias.shape
        (5, 5)
        """
        # 1. Everything that comes in is checked before anything is written.
        if need_mask_grad is not True and need_mask_grad is not False:
            need_mask_grad = boolean("need_mask_grad", need_mask_grad)
        call = usable(self._slot.held if cache is None else cache, self._token)
        batch = call.batch
        d_out_array, d_out_raw = batch.read_d_out(d_out)
        d_weights_array: Array | None = None
        d_weights_raw: list[Array] = []
        if d_weights is not None:
            if call.average is None:
                raise wrong("d_weights", "None, as the call had need_weights=False", "an array")
            d_weights_array, d_weights_raw = batch.read_d_weights(d_weights, call.average)
        grads, grads_memory = self._grads_now()

        # 2. Where the gradients of the inputs and the masks go.
        if out is None:
            outputs, fresh = None, batch.new_gradients()
            arrays: tuple[Array | None, ...] = fresh
        else:
            outputs = batch.outputs(out)
            others = list(zip(("query", "key", "value"), batch.raw, strict=True))
            others += [("d_out", d_out_raw), ("the parameters", self._block.memory)]
            others += [("d_weights", array) for array in d_weights_raw]
            others += [("grads", array) for array in grads_memory]
            others += [("a mask", mask) for mask in call.mask_arrays if mask is not None]
            outputs.refuse_overlap(others)
            query, key, value = batch.inputs
            others_too = call.mask_arrays[0] is not None or self.add_bias_kv or self.add_zero_attn
            arrays = outputs.engine_arrays(query is key is value and not others_too)
        d_query, d_key, d_value = arrays
        d_masks = call.new_mask_gradients(need_mask_grad)

        # 3. The engine; threads take turns to add to the gradients of the parameters.
        with turn_of(self):
            _native.layer_backward(
                self._options(batch, call.is_causal, call.average, call.dropout),
                self._tensors(batch, batch.inputs, call.mask_arrays),
                batch.offsets,
                call.native,
                d_out_array,
                d_weights_array,
                LayerTensors(d_query, d_key, d_value, *d_masks, *grads),
            )

        # 4. The cache is used up, and the results become the caller's kinds of arrays.
        if cache is None:
            self._slot.held = USED_UP
        results: tuple[Any, ...]
        if outputs is None:
            results = batch.finish_gradients(fresh)
        else:
            outputs.finish()
            results = tuple(out)
        return (*results, *call.finish_mask_gradients(d_masks)) if need_mask_grad else results

    def new_kv_cache(self, batch: int, capacity: int, dtype: Any = None) -> KVCache:
        """Make a cache of keys and values for this layer.

        Parameters
        ----------
        batch : int
            How many sequences.
        capacity : int
            How many tokens each may have. With a `window` a sequence may have more: the cache then
            keeps what is seen; see `KVCache`.
        dtype : dtype or str, optional
            What is stored, the layer's by default; float16 or bfloat16 under float32 halve what a
            step reads.

        Returns
        -------
        KVCache

        Raises
        ------
        ValueError, TypeError
            If a size is not positive, or `dtype` does not go together with the layer's.

        Examples
        --------
        >>> import multihead as mh
        >>> layer = mh.MultiheadAttention(8, 4, num_kv_heads=2)
        >>> layer.new_kv_cache(1, 100).keys.shape
        (1, 2, 100, 2)
        """
        left, _ = self._rules.window
        window = None if left < 0 or left >= capacity else left
        heads, width = self.num_kv_heads, self.head_dim
        dtype = self.dtype if dtype is None else dtype
        made = KVCache(batch, heads, capacity, width, dtype=dtype, window=window)
        return check_cache(made, self._sizes, made.batch, self._element)

    def parallel(
        self,
        communicator: Communicator | ContextParallel,
        sequence_dim: int | None = None,
        *,
        scheme: Scheme = "ring",
        sharding: Sharding = "contiguous",
        ring: Communicator | None = None,
    ) -> ParallelAttention:
        """Return this layer for ranks of which each holds a part of every sequence.

        All ranks call it together, each for a layer of its own that has the same options and
        parameters.

        Parameters
        ----------
        communicator : Communicator or ContextParallel
            Of `multihead.distributed.threads`, `.process_group` or `.mpi`; or how sequences are
            shared, in one object, and nothing after `sequence_dim` then.
        sequence_dim : int, optional
            Which axis of batched inputs is that of the tokens. It follows from `batch_first`, and
            is checked if given.
        scheme, sharding, ring
            As in `multihead.distributed.ContextParallel`.

        Returns
        -------
        multihead.distributed.ParallelAttention
            It has the parameters, `grads`, mode and random state of this layer.

        Raises
        ------
        ValueError
            On every rank: if `sequence_dim` is another axis, there are fewer heads than ranks to
            exchange them, or options or parameters differ between ranks.
        TypeError
            If `communicator` is none.

        Examples
        --------
        >>> import numpy as np
        >>> import multihead as mh
        >>> from multihead.distributed import threads
        >>> x = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
        >>> whole, _ = mh.MultiheadAttention(8, 2, seed=0)(x, x, x, is_causal=True)
        >>> def program(ranks):
        ...     attention = mh.MultiheadAttention(8, 2, seed=0).parallel(ranks, sharding="zigzag")
        ...     part = attention.parallel.shard(x, axis=0)
        ...     out, _ = attention(part, part, part, is_causal=True)
        ...     return np.allclose(out, attention.parallel.shard(whole, axis=0), atol=1e-6)
        >>> threads.run(2, program)
        [True, True]
        """
        from multihead.distributed.layer import parallel_attention

        return parallel_attention(self, communicator, sequence_dim, scheme, sharding, ring)

    def _step(
        self,
        inputs: tuple[Any, Any, Any],
        cache: Any,
        masks: tuple[Any, Any],
        average: bool | None,
        causal: bool,
    ) -> tuple[Any, Any]:
        padding, attn = masks
        if self._training:
            raise wrong(
                "kv_cache", "None in training mode (layer.eval() before decoding)", "a KVCache"
            )
        if padding is not None:
            got = type(padding).__name__
            raise wrong("key_padding_mask", "None beside a cache (truncate the cache)", got)
        if any(isinstance(x, Ragged) for x in inputs):
            raise wrong_type("query", "an array beside a cache", "Ragged")
        batch = Dense(self._element, self._sizes, self._batch_first, *inputs)
        held = check_cache(cache, self._sizes, batch.batch, batch.element)
        options = self._options(batch, causal, average, _NO_DROPOUT)
        return step(batch, held, self._rules, options, attn, self._params)

    def _tensors(
        self, batch: Dense | RaggedBatch, inputs: GivenOnce, masks: MaskArrays
    ) -> LayerTensors:
        if not self._placed:
            return LayerTensors._make((*inputs, *masks, *self._params, None, None, None))
        rope, sizes, compute = self._rules.rope, self._sizes, batch.element.compute
        angles: tuple[Array | None, Array | None] = None, None
        if rope is not None:
            angles = rope.angles(sizes.head, max(batch.queries, batch.keys), compute)
        slopes = self._rules.slopes(sizes.heads, compute)
        return LayerTensors._make((*inputs, *masks, *self._params, slopes, *angles))

    def _options(
        self,
        batch: Dense | RaggedBatch,
        causal: bool,
        average: bool | None,
        dropout: tuple[float, int, int],
    ) -> LayerOptions:
        form = batch.element.name, self._sizes, self._flat, causal, average, batch.tokens_first
        options = _options_without_dropout(*form)
        if dropout is _NO_DROPOUT:
            return options
        p, seed, counter = dropout
        return options._replace(dropout_p=p, seed=seed, counter=counter)
