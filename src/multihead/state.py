"""A layer's options and what changes between its calls: mode, random state, cache."""

from __future__ import annotations

from typing import Any, TypeVar

from multihead.arrays import element_of
from multihead.checks import integer, probability, wrong, wrong_type
from multihead.layouts import Sizes
from multihead.parameters import AttentionParameters, parameter_shapes

_Layer = TypeVar("_Layer", bound="LayerState")
_WORD = 2**64


class LayerState(AttentionParameters):
    """Checked options, and zero parameters to fit; `MultiheadAttention` draws their values."""

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
        dtype: Any = None,
    ) -> None:
        self.embed_dim = embed = integer("embed_dim", embed_dim, 1)
        self.num_heads = heads = integer("num_heads", num_heads, 1)
        if embed % heads:
            raise wrong("embed_dim", f"a multiple of num_heads = {heads}", embed)
        self.head_dim = embed // heads
        self.dropout = dropout
        self.bias, self.batch_first = bool(bias), bool(batch_first)
        self.add_bias_kv, self.add_zero_attn = bool(add_bias_kv), bool(add_zero_attn)
        self.kdim = embed if kdim is None else integer("kdim", kdim, 1)
        self.vdim = embed if vdim is None else integer("vdim", vdim, 1)
        extra_keys = self.add_bias_kv + self.add_zero_attn
        self._sizes = Sizes(embed, self.kdim, self.vdim, heads, extra_keys)
        shapes = parameter_shapes(embed, self.kdim, self.vdim, self.bias, self.add_bias_kv)
        super().__init__(shapes, element_of(dtype))
        self.training = True
        self.cache: Any = None
        self._rng_state = (0, 0)
        self._token = object()

    @property
    def dropout(self) -> float:
        """Probability of dropping an attention weight in training, from 0 to 1."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropout = probability("dropout", value)

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
        self._rng_state = (integer("seed", seed, 0, _WORD), integer("counter", counter, 0, _WORD))

    def train(self: _Layer, mode: bool = True) -> _Layer:
        """Switch to training mode, or to eval mode with False, and return the layer."""
        self.training = bool(mode)
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
        }

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
        }
        shown = [f"{k}={v!r}" for k, v in self.options().items() if v != defaults.get(k)]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the cache, which belongs to one call of this very object."""
        return {
            "options": self.options(),
            "memory": self._block.memory,
            "grads": None if self._grads is None else self.grads,
            "rng_state": self.rng_state,
            "training": self.training,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        LayerState.__init__(self, **state["options"])
        self._adopt(state["memory"])
        if state["grads"] is not None:
            for name, grad in state["grads"].items():
                self.grads[name][...] = grad
        self._rng_state = state["rng_state"]
        self.training = state["training"]
