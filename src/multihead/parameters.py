"""Parameters of the layer under torch's names: their memory, gradients and state dict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import is_
from typing import Any

import numpy as np

from multihead.arguments import LayerParameters
from multihead.arrays import (
    Array,
    Element,
    Kind,
    Shape,
    borrow,
    decode,
    dtype_name,
    element_of,
    encode,
    expect_writable,
    storage_dtype,
)
from multihead.checks import wrong_type
from multihead.layouts import Sizes
from multihead.locks import give_lock, turn_of
from multihead.memory import new_zeros


def parameter_shapes(sizes: Sizes) -> dict[str, Shape]:
    """Return the shape of every parameter, in the order of torch's state dict."""
    embed, kdim, vdim = sizes.embed, sizes.kdim, sizes.vdim
    queries, keys = sizes.queries, sizes.keys
    shapes: dict[str, Shape] = {}
    if kdim == embed == vdim and queries == embed == keys:
        shapes["in_proj_weight"] = (3 * embed, embed)
    else:
        shapes["q_proj_weight"] = (queries, embed)
        shapes["k_proj_weight"] = (keys, kdim)
        shapes["v_proj_weight"] = (keys, vdim)
    if sizes.bias:
        shapes["in_proj_bias"] = (queries + 2 * keys,)
    if sizes.bias_key:
        shapes["bias_k"] = shapes["bias_v"] = (1, 1, keys)
    if sizes.sinks:
        shapes["sinks"] = (sizes.heads,)
    shapes["out_proj.weight"] = (embed, queries)
    if sizes.bias:
        shapes["out_proj.bias"] = (embed,)
    return shapes


def gradient_element(element: Element, dtype: Any) -> Element:
    """Return the element type of gradients of parameters: that computed in, or their own.

    Raises
    ------
    TypeError
        If `dtype` is neither.
    """
    computed = element_of(element.compute)
    names = " or ".join(dict.fromkeys([computed.name, element.name]))
    try:
        found = computed if dtype is None else element_of(dtype)
    except TypeError:
        raise wrong_type("grad_dtype", names, str(dtype)) from None
    if found not in (computed, element):
        raise wrong_type("grad_dtype", names, found.name)
    return found


class Block:
    """Named arrays of zeros in one block of memory, each from a multiple of 64 bytes on.

    `shown` holds what callers get, the same objects each time; its arrays may be given other
    shapes in place, which those of `arrays` must not.
    """

    def __init__(self, shapes: Mapping[str, Shape], dtype: np.dtype[Any]) -> None:
        line = 64 // dtype.itemsize
        sizes = [-(-math.prod(shape) // line) * line for shape in shapes.values()]
        memory = new_zeros("parameters", (sum(sizes) + line,), dtype)
        start = -memory.ctypes.data % 64 // dtype.itemsize
        self.memory = memory[start : start + sum(sizes)]
        self.arrays: dict[str, Array] = {}
        start = 0
        for (name, shape), size in zip(shapes.items(), sizes, strict=True):
            self.arrays[name] = self.memory[start : start + math.prod(shape)].reshape(shape)
            start += size
        self.shown = {name: array[...] for name, array in self.arrays.items()}

    def packed(self) -> Array:
        """Copy the arrays, one after the other, into one."""
        return np.concatenate([array.ravel() for array in self.arrays.values()])

    def fill(self, packed: Array) -> None:
        """Set the arrays to what `packed` returned."""
        start = 0
        for array in self.arrays.values():
            array[...] = packed[start : start + array.size].reshape(array.shape)
            start += array.size


_NAMES = {
    "in_proj_weight": "in_weight",
    "q_proj_weight": "q_weight",
    "k_proj_weight": "k_weight",
    "v_proj_weight": "v_weight",
    "in_proj_bias": "in_bias",
    "bias_k": "bias_k",
    "bias_v": "bias_v",
    "out_proj.weight": "out_weight",
    "out_proj.bias": "out_bias",
    "sinks": "sinks",
}


def engine_arrays(arrays: Mapping[str, Array]) -> LayerParameters:
    """Name arrays as the engine does."""
    return LayerParameters(**{_NAMES[name]: array for name, array in arrays.items()})


def initial_values(shapes: Mapping[str, Shape], rng: np.random.Generator) -> dict[str, Array]:
    """Draw what torch draws: Glorot and Bengio (2010) in the projections, zero biases.

    The packed in_proj_weight counts as one (3E, E) matrix, so it starts smaller than three
    separate ones; out_proj.weight is uniform within 1 / sqrt(E).
    """
    values = {}
    for name, shape in shapes.items():
        fan_out, fan_in = shape[0], shape[-1]
        if name in ("bias_k", "bias_v"):
            values[name] = rng.normal(0.0, fan_in**-0.5, shape)
        elif len(shape) == 2:
            bound = fan_in**-0.5 if name == "out_proj.weight" else (6 / (fan_in + fan_out)) ** 0.5
            values[name] = rng.uniform(-bound, bound, shape)
    return values


class OutProjection:
    """The output projection's parameters, as ``layer.out_proj``."""

    def __init__(self, owner: AttentionParameters) -> None:
        self._owner = owner

    @property
    def weight(self) -> Array:
        """The weight, (E, H * D); assigning copies into it."""
        return self._owner._block.shown["out_proj.weight"]

    @weight.setter
    def weight(self, value: Any) -> None:
        self._owner._assign("out_proj.weight", value)

    @property
    def bias(self) -> Array | None:
        """The bias, (E,), or None; assigning copies into it."""
        return self._owner._block.shown.get("out_proj.bias")

    @bias.setter
    def bias(self, value: Any) -> None:
        self._owner._assign("out_proj.bias", value)

    def __repr__(self) -> str:
        embed, width = self._owner._shapes["out_proj.weight"]
        heads = "" if width == embed else f"width={width}, "
        return f"OutProjection(embed_dim={embed}, {heads}bias={self.bias is not None})"


def _parameter(name: str, shape: str) -> property:
    def fetch(self: AttentionParameters) -> Array | None:
        return self._block.shown.get(name)

    def assign(self: AttentionParameters, value: Any) -> None:
        self._assign(name, value)

    doc = f"Parameter of shape {shape}, or None if the layer has none; assigning copies into it."
    return property(fetch, assign, doc=doc)


class AttentionParameters:
    """What a layer knows of its parameters; `MultiheadAttention` adds what it does with them."""

    in_proj_weight = _parameter("in_proj_weight", "(3 * E, E)")
    q_proj_weight = _parameter("q_proj_weight", "(H * D, E)")
    k_proj_weight = _parameter("k_proj_weight", "(Hk * D, kdim)")
    v_proj_weight = _parameter("v_proj_weight", "(Hk * D, vdim)")
    in_proj_bias = _parameter("in_proj_bias", "(H * D + 2 * Hk * D,)")
    bias_k = _parameter("bias_k", "(1, 1, Hk * D)")
    bias_v = _parameter("bias_v", "(1, 1, Hk * D)")
    sinks = _parameter("sinks", "(H,)")

    _lock: Any

    def __init__(self, shapes: dict[str, Shape], element: Element, of_grads: Element) -> None:
        give_lock(self)  # held while gradients are added and a mask is drawn
        self._shapes = shapes
        self._element, self._of_grads = element, of_grads
        self._adopt(Block(shapes, storage_dtype(element)))
        self._grads: Block | None = None

    def _adopt(self, block: Block) -> None:
        """Take a block of memory for the parameters."""
        self._block = block
        stored = self._element.stored
        self._params = engine_arrays({name: x.view(stored) for name, x in block.arrays.items()})

    def _adopt_grads(self, block: Block) -> None:
        """Take a block of memory for the gradients; it is seen once all of it is in place."""
        stored = self._of_grads.stored
        self._engine_grads = engine_arrays({n: x.view(stored) for n, x in block.arrays.items()})
        self._grads_dict = dict(block.shown)
        self._grads = block

    @property
    def out_proj(self) -> OutProjection:
        """The output projection: ``layer.out_proj.weight`` and ``layer.out_proj.bias``."""
        return OutProjection(self)

    @property
    def dtype(self) -> str:
        """Name of the dtype that the layer was made with: that of its parameters."""
        return self._element.name

    @property
    def grad_dtype(self) -> str:
        """Name of the dtype of `grads`."""
        return self._of_grads.name

    @property
    def grads(self) -> dict[str, Array]:
        """Gradients of the parameters, to which every ``backward`` adds.

        A dict under the names of the state dict, of `grad_dtype`: float64 for a float64 layer and
        float32 otherwise, also for float16 and bfloat16 parameters, unless the layer was made with
        another. An entry may be replaced by a writable array of the same shape and dtype.
        """
        if self._grads is None:
            with turn_of(self):
                if self._grads is None:
                    self._adopt_grads(Block(self._shapes, storage_dtype(self._of_grads)))
        return self._grads_dict

    def zero_grad(self) -> None:
        """Set all of `grads` to zero, in place."""
        if self._grads is not None:
            with turn_of(self):
                for grad in self._grads_dict.values():
                    grad.fill(0)

    def parameters(self) -> dict[str, Array]:
        """Return the parameters themselves under their state-dict names.

        Returns
        -------
        dict of str to ndarray
            Writing into an array changes the layer. bfloat16 parameters have the dtype
            ``ml_dtypes.bfloat16``; where that package is missing, they are their bits as uint16.
        """
        return dict(self._block.shown)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters, in torch's order and under torch's names.

        They are NumPy arrays: a torch layer takes ``{name: torch.from_numpy(x) for name, x in
        layer.state_dict().items()}``.
        """
        return {name: array.copy() for name, array in self._block.arrays.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy parameters from a state dict, this package's or torch's.

        Parameters
        ----------
        state_dict : mapping of str to array
            Exactly the names and shapes of `state_dict`. Values are NumPy or DLPack arrays (torch
            tensors, for one) of any floating dtype, and are cast.

        Raises
        ------
        ValueError
            If names are missing or unexpected or shapes differ. All are named, nothing is changed.
        TypeError
            If it is no mapping, or a value is not a floating array.
        """
        if not isinstance(state_dict, Mapping):
            got = f"{type(state_dict).__name__} (read a file first, as with torch.load)"
            raise wrong_type("state_dict", "a mapping of names to arrays", got)
        problems = [f"missing {name}" for name in self._shapes if name not in state_dict]
        problems += [f"unexpected {name}" for name in state_dict if name not in self._shapes]
        common = {name: state_dict[name] for name in self._shapes if name in state_dict}
        given = {name: self._floats(name, value) for name, value in common.items()}
        for name, (array, _) in given.items():
            if array.shape != self._shapes[name]:
                problems.append(f"{name}: expected {self._shapes[name]}, got {array.shape}")
        if problems:
            raise ValueError(f"state_dict: {'; '.join(problems)}")
        values = {name: self._stored(*x) for name, x in given.items()}
        own = self._block.memory
        values = {
            name: x.copy() if np.may_share_memory(x, own) else x for name, x in values.items()
        }
        for name, value in values.items():
            self._block.arrays[name][...] = value

    def _assign(self, name: str, value: Any) -> None:
        if name not in self._shapes:
            if value is None:
                return
            raise ValueError(f"{name}: expected None, as the layer was made without it")
        given = self._floats(name, value)
        if given[0].shape != self._shapes[name]:
            raise ValueError(f"{name}: expected {self._shapes[name]}, got {given[0].shape}")
        self._block.arrays[name][...] = self._stored(*given)

    def _floats(self, name: str, value: Any) -> tuple[Array, Kind]:
        """Take in a parameter's new value as it is, a floating array."""
        if getattr(value, "requires_grad", False):
            value = value.detach()
        array, kind = borrow(name, value)
        ours = self._element.name == "bfloat16" and array.dtype == self._block.memory.dtype
        if not ours and not kind.bfloat16 and array.dtype.kind != "f":
            raise wrong_type(name, "a floating array", array.dtype.name)
        return array, kind

    def _stored(self, array: Array, kind: Kind) -> Array:
        """Return a value in the dtype that parameters are stored in."""
        dtype = self._block.memory.dtype
        bits = self._element.name == "bfloat16"
        if array.dtype == dtype and (kind.bfloat16 or bits or dtype.kind == "f"):
            return array
        if kind.bfloat16:
            array = decode(array, self._element.compute, True)
        return encode(array, dtype, bits)

    def _initialise(self, rng: np.random.Generator) -> None:
        bits = self._element.name == "bfloat16"
        for name, value in initial_values(self._shapes, rng).items():
            self._block.arrays[name][...] = encode(value, self._block.memory.dtype, bits)

    def _grads_now(self) -> tuple[LayerParameters, list[Array]]:
        """Return the gradients for the engine, and the memory that they take."""
        grads = self.grads
        assert self._grads is not None
        own = self._grads.shown
        if len(grads) == len(own) and all(map(is_, grads.values(), own.values())):
            return self._engine_grads, [self._grads.memory]
        dtype, stored = self._grads.memory.dtype, self._of_grads.stored
        views = {}
        for name, shape in self._shapes.items():
            label = f"grads[{name!r}]"
            if not isinstance(grads.get(name), np.ndarray):
                raise wrong_type(label, "a NumPy array", type(grads.get(name)).__name__)
            array, kind = borrow(label, grads[name])
            if array.dtype.newbyteorder("=") != dtype:
                raise wrong_type(label, self.grad_dtype, dtype_name(array, kind))
            expect_writable(label, array, shape)
            views[name] = array.view(stored)
        return engine_arrays(views), list(grads.values())
