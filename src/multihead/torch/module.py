"""`torch.nn.MultiheadAttention`, computed by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from multihead.arguments import LayerOptions, LayerTensors
from multihead.checks import boolean
from multihead.distributed import Communicator, ContextParallel
from multihead.distributed.context_parallel import Scheme
from multihead.distributed.sharding import Sharding
from multihead.kv_cache import KVCache
from multihead.layer_rules import alibi_slopes, layer_rules
from multihead.rope import Rope
from multihead.score_rules import Window
from multihead.state import SizeOptions, checked_sizes
from multihead.torch.calls import (
    LayerCall,
    Offsets,
    batch_of_one,
    cloned_inputs,
    input_tensors,
    result_weights,
)
from multihead.torch.composed import composed
from multihead.torch.decoding import length_after, refuse_beside_cache, sizes_of, step
from multihead.torch.dispatch import Ways, compute, needs_grad
from multihead.torch.engine import forward
from multihead.torch.exported import exported_layer
from multihead.torch.fits import compute_dtype, explain_mask, refuse_arrays
from multihead.torch.function import attend
from multihead.torch.nested import padded_weights, ragged_inputs
from multihead.torch.ops import attention
from multihead.torch.options import NO_RULES, make_parameters, refuse_without_engine
from multihead.torch.parallel_module import ShardedCall, forward_sharded
from multihead.torch.rotation import TracedTurns, angle_tensors, traced_turns
from multihead.torch.strangers import refuse_hook, refuse_quantized, refuse_script
from multihead.torch.symbolic import as_leaf, is_symbolic
from multihead.torch.tensors import NAMES

_PLAIN = torch.nn.modules.linear.NonDynamicallyQuantizableLinear
# in the order of `LayerTensors`
_OF_INPUTS = (
    "in_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
)
_OF_OUT = ("weight", "bias")
WAYS = Ways(
    engine=lambda call: forward(call, False)[:2],
    function=attend,
    operation=attention,
    composed=composed,
    exported=exported_layer,
)

# PyTorch's fused layers read an attention module's parameters and never call it, unless a module
# inside has a forward hook. This one sits on `out_proj`, which is not called either.
_HOOK = "multihead"


def _around_fused_layers(*_: Any) -> None:
    """Do nothing, as a forward hook."""


def around_fused_layers(out_proj: Any, no_more: bool = False) -> None:
    """Keep PyTorch's fused layers from taking the place of the attention above `out_proj`."""
    if not isinstance(out_proj, torch.nn.Module):
        return
    if no_more:
        out_proj._forward_hooks.pop(_HOOK, None)
    else:
        out_proj._forward_hooks[_HOOK] = _around_fused_layers


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` on the engine: same constructor, state dict, call and errors.

    Fast with dropout, returned weights, masks that have gradients and padding, in memory that
    grows with the sequence. Tensors that are not in CPU memory, of a dtype that the engine lacks,
    and calls that PyTorch refuses go to PyTorch's own implementation unchanged, but for inputs of
    float16 or bfloat16 beside parameters of float32: they are computed in the inputs' dtype.

    Two things differ. A query that its masks hide every key from gets zeros, weights of 0 and
    gradients of 0, on every path. And ``is_causal=True`` is a causal mask, with or without an
    `attn_mask` beside it, where PyTorch takes it for a hint.

    Parameters
    ----------
    *args
        Those of `torch.nn.MultiheadAttention`, under the same names.
    num_kv_heads, head_dim, window, softcap, alibi, sinks, rope
        As in `multihead.MultiheadAttention`. With them a layer is the engine's alone: other tensors
        are an error.

    Notes
    -----
    Each training call with dropout draws one seed from PyTorch's generator. An `out_proj` that was
    replaced, or has hooks or parametrizations, is called as a module.

    Examples
    --------
    >>> import torch
    >>> theirs = torch.nn.MultiheadAttention(8, 2)
    >>> ours = MultiheadAttention(8, 2)
    >>> ours.load_state_dict(theirs.state_dict())
    <All keys matched successfully>
    >>> x = torch.randn(5, 3, 8)
    >>> torch.allclose(ours(x, x, x)[0], theirs(x, x, x)[0], atol=1e-6)
    True
    """

    # of layers that `accelerate` changed, which were not made here
    _rules = NO_RULES
    _has_sinks = False
    _key_heads: int | None = None
    _turns: TracedTurns | None = None
    _parallel: ContextParallel | None = None

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
    ) -> None:
        of_torch = (embed_dim, num_heads, bias, add_bias_kv, add_zero_attn, kdim, vdim)
        factory = {"device": device, "dtype": dtype}
        if num_kv_heads is head_dim is None:
            super().__init__(*of_torch[:2], dropout, *of_torch[2:], batch_first, **factory)
        else:
            sizes = checked_sizes(SizeOptions(*of_torch, num_kv_heads, head_dim))
            torch.nn.Module.__init__(self)
            make_parameters(self, sizes, factory)
            self.dropout, self.batch_first = dropout, batch_first
            self._key_heads = sizes.key_heads
            self._reset_parameters()
        self._rules = layer_rules(self.head_dim, window, softcap, alibi, rope)
        if self._rules.rope is not None:
            self._turns = traced_turns(self._rules.rope, self.head_dim)
        if boolean("sinks", sinks):
            self._has_sinks = True
            self.sinks = torch.nn.Parameter(torch.zeros(num_heads, **factory))

    @property
    def num_kv_heads(self) -> int:
        """Hk, the number of heads of keys and values."""
        return self.num_heads if self._key_heads is None else self._key_heads

    @property
    def rope(self) -> Rope | None:
        """By which angles queries and keys are turned, or None."""
        return self._rules.rope

    def new_kv_cache(self, batch: int, capacity: int, dtype: Any = None) -> KVCache:
        """Make a cache of keys and values; see `multihead.MultiheadAttention.new_kv_cache`."""
        left, _ = self._rules.window
        window = None if left < 0 or left >= capacity else left
        own = NAMES.get(self.out_proj.weight.dtype, "float32") if dtype is None else dtype
        sizes = self.num_kv_heads, capacity, self.head_dim
        return KVCache(batch, *sizes, dtype=str(own).removeprefix("torch."), window=window)

    def parallel(
        self,
        communicator: Communicator | None,
        *,
        scheme: Scheme = "ring",
        sharding: Sharding = "contiguous",
        ring: Communicator | None = None,
    ) -> MultiheadAttention:
        """Attend over sequences of which each rank holds a part, from now on.

        Calls then take this rank's tokens of query, key and value, with `key_padding_mask` of its
        own keys and `attn_mask` of its own queries and the keys of all ranks, and return its
        tokens. All ranks call together, also ``backward``, with ``need_weights=False``.

        Parameters
        ----------
        communicator : Communicator or None
            None: whole sequences again.
        scheme, sharding, ring
            As in `multihead.distributed.ContextParallel`.

        Returns
        -------
        MultiheadAttention
            The layer itself. Its copies share the ranks; it cannot be pickled, its state dict can.

        Raises
        ------
        ValueError, TypeError
            As `multihead.distributed.ContextParallel`.

        See Also
        --------
        multihead.torch.parallel : The same for all layers of a model.

        Examples
        --------
        >>> import torch
        >>> from multihead.distributed import shard, threads
        >>> from multihead.torch import MultiheadAttention
        >>> layer, x = MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 7, 8)
        >>> whole, _ = layer(x, x, x, is_causal=True)
        >>> state = layer.state_dict()
        >>> def program(ranks):
        ...     layer = MultiheadAttention(8, 2, batch_first=True)
        ...     layer.load_state_dict(state)
        ...     part = shard(x, ranks, axis=1)
        ...     out, _ = layer.parallel(ranks)(part, part, part, need_weights=False, is_causal=True)
        ...     return torch.allclose(out, shard(whole.detach(), ranks, axis=1), atol=1e-6)
        >>> threads.run(3, program)
        [True, True, True]
        """
        shared = None
        if communicator is not None:
            shared = ContextParallel(communicator, scheme, sharding, ring)
        self._parallel = shared
        return self

    def extra_repr(self) -> str:
        """Say what options beyond PyTorch's the layer has."""
        given = {"num_kv_heads": self._key_heads, "head_dim": self._key_heads and self.head_dim}
        given |= {**self._rules.options(), "sinks": self._has_sinks, "parallel": self._parallel}
        return ", ".join(f"{name}={x!r}" for name, x in given.items() if x)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "out_proj":
            around_fused_layers(value)

    def register_forward_hook(self, hook: Any, **options: Any) -> Any:
        """Register a hook, as every module does; those of libraries that need PyTorch's raise."""
        refuse_hook(hook)
        return super().register_forward_hook(hook, **options)

    def __prepare_scriptable__(self) -> Any:
        refuse_script()

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        kv_cache: KVCache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; parameters and results are those of `torch.nn.MultiheadAttention.forward`.

        Parameters
        ----------
        query, key, value : Tensor
            (L, N, E), (S, N, kdim) and (S, N, vdim); batch first (N, L, E) and so on; unbatched
            (L, E). Batch first also NestedTensors, strided or jagged, of sequences (L_n, E).
        key_padding_mask : Tensor, optional
            (N, S) or (S,), bool (True = ignore) or float (added).
        need_weights : bool
        attn_mask : Tensor, optional
            (L, S) or (N * H, L, S), bool (True = ignore) or float (added); also with four axes,
            broadcastable to (N, H, L, S).
        average_attn_weights : bool
        is_causal : bool
            Query i sees keys up to i, whatever else the masks say.
        kv_cache : KVCache, optional
            In eval mode, without gradients: the inputs are new tokens after those that it holds;
            see `multihead.MultiheadAttention`.

        Returns
        -------
        out : Tensor
            Shaped like `query`.
        weights : Tensor or None
            (N, L, S'), or (N, H, L, S') for each head, after dropout.
        """
        inputs = query, key, value
        if is_symbolic(inputs):
            rest = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            leaf: tuple[torch.Tensor, torch.Tensor | None] = as_leaf(self, (*inputs, *rest))
            return leaf
        if self._parallel is not None:
            masks = key_padding_mask, attn_mask
            call = ShardedCall(*inputs, *masks, is_causal, need_weights, kv_cache)
            return forward_sharded(self, self._parallel, call), None
        custom = self._out_proj_is_custom()
        tensors = self._tensors(inputs, (key_padding_mask, attn_mask), custom)
        fitted = tensors if kv_cache is None else tensors._replace(mask=None)
        dtype = compute_dtype(self, inputs, fitted, need_weights)
        if dtype is None:
            refuse_quantized(query)
            refuse_without_engine(self, query, kv_cache)
            refuse_arrays(inputs)
            explain_mask(self, query, key, attn_mask)
            refused: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
            return refused
        average = bool(average_attn_weights) if need_weights else None
        ragged = query.is_nested
        unbatched = not ragged and query.dim() == 2

        # 1. Inputs: batched, dense or ragged, of their own dtypes.
        offsets = None
        if kv_cache is not None:
            refuse_beside_cache(self, tensors, ragged)
        if not ragged and needs_grad(tensors) and self._lets_inputs_change(tensors, unbatched):
            tensors = cloned_inputs(tensors)
        if ragged:
            tensors, offsets, batch = ragged_inputs(tensors)
        elif unbatched:
            tensors = batch_of_one(tensors)
        if custom:  # heads side by side, then the module
            eye = torch.eye(self.num_heads * self.head_dim, dtype=dtype, device="cpu")
            tensors = tensors._replace(out_weight=eye, out_bias=None)

        tokens_first = not (self.batch_first or unbatched or ragged)
        if self._rules.alibi or self._rules.rope is not None:
            axis = 0 if tokens_first else 1
            more = 0 if kv_cache is None else length_after(kv_cache, 0)
            tensors = self._placed(tensors, dtype, offsets, axis, more)

        # 2. The layer.
        softcap, left, right, interleaved = self._rules.flat
        options = LayerOptions(
            dtype=NAMES[dtype],
            num_heads=self.num_heads,
            key_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            zero_row=self.add_zero_attn,
            causal=bool(is_causal),
            average=average,
            tokens_first=tokens_first,
            dropout_p=self.dropout if self.training else 0.0,
            seed=None,
            softcap=softcap,
            window_left=left,
            window_right=right,
            interleaved=interleaved,
        )
        if kv_cache is not None:
            out, weights = step(sizes_of(self), tensors, options, kv_cache)
        else:
            out, weights = compute(LayerCall(tensors, options, offsets), WAYS)

        # 3. Results in the caller's form.
        if weights is not None and offsets is not None:
            heads = 1 if average else self.num_heads
            weights = padded_weights(weights, offsets, heads, self._extra_keys())
        weights = result_weights(weights, average, unbatched)
        if custom:
            out = self.out_proj(out)
        if ragged:
            out = batch.like(out)
        return out[0] if unbatched else out, weights

    def _tensors(self, inputs: Any, masks: Any, custom: bool) -> LayerTensors:
        """Name what a call is given; the parameters of a custom `out_proj` are its own."""
        own = _parameters(self, _OF_INPUTS)
        of_out = (None, None) if custom else _parameters(self._modules["out_proj"], _OF_OUT)
        sinks = _parameters(self, ("sinks",)) if self._has_sinks else ()
        return LayerTensors(*input_tensors(*inputs), *masks, *own, *of_out, *sinks)

    def _placed(
        self,
        tensors: LayerTensors,
        dtype: torch.dtype,
        offsets: Offsets | None,
        axis: int,
        before: int = 0,
    ) -> LayerTensors:
        """Add what says how scores depend on positions, of tokens along an axis, after others."""
        rules, wide = self._rules, torch.float64 if dtype == torch.float64 else torch.float32
        if rules.alibi:
            slopes = torch.tensor(alibi_slopes(self.num_heads), dtype=wide, device="cpu")
            tensors = tensors._replace(alibi_slopes=slopes)
        if rules.rope is None:
            return tensors
        if offsets is not None:
            length = max(int(x.diff().amax()) if len(x) > 1 else 0 for x in offsets)
        else:
            query, key, _ = tensors.three
            length = before + max(query.shape[axis], key.shape[axis])
        cosine, sine = angle_tensors(rules.rope, self._turns, self.head_dim, length, wide)
        return tensors._replace(cosine=cosine, sine=sine)

    def _lets_inputs_change(self, tensors: LayerTensors, unbatched: bool) -> bool:
        """Whether PyTorch lets inputs change in place before backward: it copies, or keeps none."""
        if torch.compiler.is_compiling():  # there are no changes in place in its graphs
            return False
        t = tensors
        frozen = not any(
            x is not None and x.requires_grad
            for x in (t.in_weight, t.q_weight, t.k_weight, t.v_weight)
        )
        return frozen or (self.batch_first and not unbatched) or torch.is_autocast_enabled("cpu")

    def _extra_keys(self) -> int:
        return int(self.bias_k is not None) + int(self.add_zero_attn)

    def _out_proj_is_custom(self) -> bool:
        m: Any = self._modules["out_proj"]
        return type(m) is not _PLAIN or bool(
            "forward" in m.__dict__
            or len(m._forward_hooks) > (_HOOK in m._forward_hooks)
            or m._forward_pre_hooks
            or m._backward_hooks
            or m._backward_pre_hooks
        )


def _parameters(module: torch.nn.Module, names: Sequence[str]) -> list[Any]:
    """Return parameters; the module itself is asked only for what is not among its own."""
    own = module._parameters
    return [own[name] if name in own else getattr(module, name) for name in names]
