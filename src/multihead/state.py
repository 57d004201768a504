"""A layer's options, masks by them, and what changes between calls: mode, random state, cache."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

from multihead.arrays import element_of
from multihead.cache import SET_TO_NONE, CacheSlot, usable
from multihead.checks import boolean, integer, probability, wrong, wrong_type
from multihead.display import layer_html
from multihead.layer_rules import LayerRules, layer_rules
from multihead.layouts import Sizes
from multihead.locks import turn_of
from multihead.mask_warning import MaskWatch
from multihead.masks import merge
from multihead.parameters import (
    AttentionParameters,
    Block,
    gradient_element,
    parameter_shapes,
)
from multihead.rope import Rope
from multihead.seeds import WORD
from multihead.suggestions import meant

_Layer = TypeVar("_Layer", bound="LayerState")


class SizeOptions(NamedTuple):
    """The options that a layer's parameters follow from, unchecked."""

    embed_dim: int
    num_heads: int
    bias: bool = True
    add_bias_kv: bool = False
    add_zero_attn: bool = False
    kdim: int | None = None
    vdim: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    sinks: bool = False


RULE_OPTIONS = ("window", "softcap", "alibi", "rope")


def taken(options: dict[str, Any]) -> SizeOptions:
    """Take the options that parameters follow from out of all of them."""
    return SizeOptions(
        **{name: options.pop(name) for name in SizeOptions._fields if name in options}
    )


def checked_sizes(asked: SizeOptions) -> Sizes:
    """Return what a layer of these options cannot change, or raise."""
    embed = integer("embed_dim", asked.embed_dim, 1)
    heads = integer("num_heads", asked.num_heads, 1)
    if asked.head_dim is None and embed % heads:
        raise wrong("embed_dim", f"a multiple of num_heads = {heads}, or head_dim=", embed)
    key_heads = asked.num_kv_heads
    key_heads = heads if key_heads is None else integer("num_kv_heads", key_heads, 1)
    if heads % key_heads:
        raise wrong("num_kv_heads", f"a divisor of num_heads = {heads}", key_heads)
    head, kdim, vdim = (
        default if given is None else integer(name, given, 1)
        for name, given, default in (
            ("head_dim", asked.head_dim, embed // heads),
            ("kdim", asked.kdim, embed),
            ("vdim", asked.vdim, embed),
        )
    )
    return Sizes(
        embed=embed,
        heads=heads,
        key_heads=key_heads,
        head=head,
        kdim=kdim,
        vdim=vdim,
        bias=boolean("bias", asked.bias),
        bias_key=boolean("add_bias_kv", asked.add_bias_kv),
        zero_row=boolean("add_zero_attn", asked.add_zero_attn),
        sinks=boolean("sinks", asked.sinks),
    )


def _fixed(name: str, size: str, doc: str) -> Any:
    def refuse(self: LayerState, value: Any) -> None:
        message = f"{name}: cannot be changed, as the parameters follow from it; make a new layer"
        raise AttributeError(message)

    return property(attrgetter(f"_sizes.{size}"), refuse, doc=doc)


def _flag(name: str, doc: str) -> Any:
    def assign(self: LayerState, value: Any) -> None:
        setattr(self, f"_{name}", boolean(name, value))

    return property(attrgetter(f"_{name}"), assign, doc=doc)


class LayerState(AttentionParameters):
    """Checked options, and zero parameters to fit; `MultiheadAttention` draws their values."""

    def __init__(
        self,
        sizes: Sizes,
        rules: LayerRules,
        dropout: float,
        batch_first: bool,
        dtype: Any,
        grad_dtype: Any = None,
    ) -> None:
        self._sizes, self._rules, self._flat = sizes, rules, rules.flat
        self.dropout, self.batch_first, self.training = dropout, batch_first, True
        element = element_of(dtype)
        of_grads = gradient_element(element, grad_dtype)
        super().__init__(parameter_shapes(sizes), element, of_grads)
        self._training: bool
        self._batch_first: bool
        self._slot = CacheSlot()
        self._placed = rules.alibi or rules.rope is not None  # scores depend on positions
        self._watch = MaskWatch(true_hides=True, left=4)
        self._rng_state = (0, 0)
        self._token = object()

    embed_dim: Final[int] = _fixed("embed_dim", "embed", "E, the width of query and output.")
    num_heads: Final[int] = _fixed("num_heads", "heads", "H, the number of heads.")
    num_kv_heads: Final[int] = _fixed(
        "num_kv_heads", "key_heads", "Hk, the number of heads of keys and values."
    )
    head_dim: Final[int] = _fixed("head_dim", "head", "D, the width of a head: E / H by default.")
    kdim: Final[int] = _fixed("kdim", "kdim", "Width of key.")
    vdim: Final[int] = _fixed("vdim", "vdim", "Width of value.")
    bias: Final[bool] = _fixed("bias", "bias", "Whether the projections have biases.")
    add_bias_kv: Final[bool] = _fixed(
        "add_bias_kv", "bias_key", "Whether there are `bias_k` and `bias_v`."
    )
    add_zero_attn: Final[bool] = _fixed(
        "add_zero_attn", "zero_row", "Whether a zero key is appended."
    )

    training: bool = _flag("training", "Set by `train` and `eval`.")
    batch_first: bool = _flag("batch_first", "Whether batched arrays are (N, L, E), not (L, N, E).")

    def __getattr__(self, name: str) -> Any:
        message = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name == "forward":
            message += "; call the layer itself: layer(query, key, value)"
        elif not name.startswith("_"):
            message += meant(name, dir(type(self)))
        raise AttributeError(message)

    @property
    def window(self) -> tuple[int | None, int | None] | None:
        """How many keys a query sees before and after its own place, or None: all."""
        window: tuple[int | None, int | None] | None = self._rules.options()["window"]
        return window

    @property
    def softcap(self) -> float | None:
        """The cap of the scores, or None."""
        return self._rules.softcap or None

    @property
    def alibi(self) -> bool:
        """Whether scores fall with the distance between a query and a key."""
        return self._rules.alibi

    @property
    def rope(self) -> Rope | None:
        """By which angles queries and keys are turned, or None."""
        return self._rules.rope

    @property
    def dropout(self) -> float:
        """Probability of dropping an attention weight in training, from 0 to 1."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropout = probability("dropout", value)

    @property
    def cache(self) -> Any:
        """What the calling thread's last call left for `backward`, or None."""
        held = self._slot.held
        return None if isinstance(held, str) else held

    @cache.setter
    def cache(self, value: Any) -> None:
        self._slot.held = SET_TO_NONE if value is None else usable(value, self._token)

    @property
    def rng_state(self) -> tuple[int, int]:
        """(seed, counter) of dropout, each from 0 to 2**64 - 1.

        The mask that a training call draws depends on them and on positions only; each training
        call with dropout adds 1 to the counter. Set it to draw the same masks again.
        """
        return self._rng_state

    @rng_state.setter
    def rng_state(self, state: tuple[int, int]) -> None:
        if not isinstance(state, tuple | list) or len(state) != 2:
            raise wrong_type("rng_state", "a tuple (seed, counter)", repr(state))
        seed, counter = state
        numbers = (integer("seed", seed, 0, WORD), integer("counter", counter, 0, WORD))
        with turn_of(self):
            self._rng_state = numbers

    def _draw(self) -> tuple[float, int, int]:
        """Take the next mask of dropout: (p, seed, counter), which no other call gets."""
        with turn_of(self):
            seed, counter = self._rng_state
            self._rng_state = (seed, (counter + 1) % WORD)
        return self._dropout, seed, counter

    def _undraw(self, dropout: tuple[float, int, int]) -> None:
        """Give a mask back, unless another call has taken the one after it."""
        _, seed, counter = dropout
        with turn_of(self):
            if self._rng_state == (seed, (counter + 1) % WORD):
                self._rng_state = (seed, counter)

    def train(self: _Layer, mode: bool = True) -> _Layer:
        """Switch to training mode, or to eval mode with False, and return the layer."""
        self.training = boolean("mode", mode)
        return self

    def eval(self: _Layer) -> _Layer:
        """Switch to eval mode, without dropout and without a cache, and return the layer."""
        return self.train(False)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, all but `device` and `seed`."""
        return {
            "embed_dim": self.embed_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "bias": self.bias,
            "add_bias_kv": self.add_bias_kv,
            "add_zero_attn": self.add_zero_attn,
            "kdim": self.kdim,
            "vdim": self.vdim,
            "batch_first": self.batch_first,
            "dtype": self.dtype,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            **self._rules.options(),
            "sinks": self._sizes.sinks,
            "grad_dtype": self.grad_dtype,
        }

    def merge_masks(
        self, attn_mask: Any, key_padding_mask: Any, query: Any
    ) -> tuple[Any, int | None]:
        """Combine two masks into one, and say of which type it is.

        Parameters
        ----------
        attn_mask : array of shape (L, S), (N * H, L, S) or broadcastable to (N, H, L, S), or None
        key_padding_mask : array of shape (N, S), or None
        query : array of shape (N, L, E)
            Only its shape counts.

        Returns
        -------
        mask : array or None
            `key_padding_mask` as it is if it is alone, otherwise (N, H, L, S): the logical or of
            two boolean masks; else the sum, in the dtype computed in, where True counts as -inf.
        mask_type : int or None
            1 for a `key_padding_mask` alone, 2 with an `attn_mask`, None without any.

        Raises
        ------
        ValueError, TypeError
            If a mask has another shape or is neither boolean nor floating.

        Examples
        --------
        >>> import numpy as np
        >>> import multihead as mh
        >>> layer = mh.MultiheadAttention(8, 2)
        >>> causal, padding = np.triu(np.ones((3, 3), bool), 1), np.zeros((4, 3), bool)
        >>> mask, mask_type = layer.merge_masks(causal, padding, np.ones((4, 3, 8)))
        >>> mask.shape, mask_type
        ((4, 2, 3, 3), 2)
        """
        shape = tuple(query.shape)
        return merge(attn_mask, key_padding_mask, shape, self.num_heads, self._element.compute)

    def _repr_html_(self) -> str:
        return layer_html(self)

    def __repr__(self) -> str:
        defaults = {
            "dropout": 0.0,
            "bias": True,
            "add_bias_kv": False,
            "add_zero_attn": False,
            "kdim": self.embed_dim,
            "vdim": self.embed_dim,
            "batch_first": False,
            "dtype": "float32",
            "num_kv_heads": self.num_heads,
            "head_dim": self.embed_dim // self.num_heads,
            **LayerRules().options(),
            "sinks": False,
            "grad_dtype": gradient_element(self._element, None).name,
        }
        shown = [f"{k}={v!r}" for k, v in self.options().items() if v != defaults.get(k)]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the cache, which belongs to one call of this very object."""
        return {
            "options": self.options(),
            "memory": self._block.packed(),
            "grads": None if self._grads is None else self.grads,
            "rng_state": self.rng_state,
            "training": self.training,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = dict(state["options"])
        sizes = checked_sizes(taken(options))
        rules = layer_rules(sizes.head, **{x: options.pop(x) for x in RULE_OPTIONS if x in options})
        LayerState.__init__(self, sizes, rules, **options)
        block = Block(self._shapes, state["memory"].dtype)
        block.fill(state["memory"])
        self._adopt(block)
        if state["grads"] is not None:
            for name, grad in state["grads"].items():
                self.grads[name][...] = grad.reshape(self._shapes[name])
        self._rng_state = state["rng_state"]
        self.training = state["training"]
