"""Random problems for the BNNS face: arrays in any layout, the calls, and what the oracle says."""

from __future__ import annotations

from ctypes import c_size_t
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from magnitudes import magnitudes
from multihead import bnns, reference
from multihead.bnns import DataLayout, NDArrayFlags

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
FLOAT32 = DTYPES[0]
LAYOUTS = {
    1: [DataLayout.Vector, DataLayout.OneDLastMajor, DataLayout.OneDFirstMajor],
    2: [
        DataLayout.RowMajorMatrix,
        DataLayout.ColumnMajorMatrix,
        DataLayout.TwoDLastMajor,
        DataLayout.TwoDFirstMajor,
    ],
    3: [
        DataLayout.SNE,
        DataLayout.NSE,
        DataLayout.MHA_DHK,
        DataLayout.ThreeDLastMajor,
        DataLayout.ThreeDFirstMajor,
    ],
    4: [DataLayout.FourDLastMajor, DataLayout.FourDFirstMajor],
}
# the index that each stride belongs to, nearest elements first: written down here once more
NEAREST = {
    DataLayout.Vector: (0,),
    DataLayout.OneDLastMajor: (0,),
    DataLayout.OneDFirstMajor: (0,),
    DataLayout.RowMajorMatrix: (1, 0),
    DataLayout.ColumnMajorMatrix: (0, 1),
    DataLayout.TwoDLastMajor: (0, 1),
    DataLayout.TwoDFirstMajor: (1, 0),
    DataLayout.SNE: (0, 1, 2),
    DataLayout.NSE: (0, 1, 2),
    DataLayout.MHA_DHK: (1, 2, 0),
    DataLayout.ThreeDLastMajor: (0, 1, 2),
    DataLayout.ThreeDFirstMajor: (2, 1, 0),
    DataLayout.FourDLastMajor: (0, 1, 2, 3),
    DataLayout.FourDFirstMajor: (3, 2, 1, 0),
}
SENTINEL = 77.0


@dataclass
class Slot:
    """An array in some layout, in a buffer with room between and around its elements."""

    layout: DataLayout
    array: Any  # the elements in the order of their indices, a batch index in front if there is one
    buffer: Any
    batched: bool
    explicit: bool = True
    flags: NDArrayFlags = NDArrayFlags.BackpropSet
    before: Any = None

    def descriptor(self, data: bool = True) -> bnns.NDArrayDescriptor:
        item = self.array
        if self.batched:  # an empty batch has no item, but its shape
            item = np.ndarray(
                item.shape[1:], item.dtype, self.buffer, self.start, strides=item.strides[1:]
            )
        d = bnns.NDArrayDescriptor.from_array(item, self.layout, flags=self.flags, data=data)
        if not self.explicit:
            d.stride[:] = [0] * len(d.stride)
        if self.batched:
            d.stride[2] = self.stride
        d._keeps = self.buffer
        return d

    @property
    def start(self) -> int:
        """Where the first element lies in the buffer, in bytes."""
        return int(self.array.ctypes.data - self.buffer.ctypes.data)

    @property
    def stride(self) -> int:
        """Elements between batch items."""
        return self.array.strides[0] // self.array.itemsize if self.array.size else 0

    @property
    def values(self) -> np.ndarray:
        return self.array.astype(np.float64)

    def keep_state(self) -> None:
        self.before = self.buffer.copy()

    def old(self, buffer: Any = None) -> Any:
        """The elements in another buffer: the one before, if none is given."""
        buffer = self.before if buffer is None else buffer
        return np.ndarray(
            self.array.shape, self.array.dtype, buffer, self.start, strides=self.array.strides
        )

    def untouched(self) -> bool:
        """Whether the whole buffer is as it was."""
        return bool((self.before.view(np.uint8) == self.buffer.view(np.uint8)).all())

    def gaps_untouched(self) -> bool:
        """Whether everything but the elements is as it was."""
        after = self.buffer.copy()
        self.old(after)[...] = self.old()
        return bool((after.view(np.uint8) == self.before.view(np.uint8)).all())


def place(
    rng: np.random.Generator,
    values: Any,
    layout: DataLayout,
    *,
    gaps: bool = False,
    batched: bool = False,
    explicit: bool = True,
    flags: NDArrayFlags = NDArrayFlags.BackpropSet,
    misaligned: bool = False,
    apart: bool = False,
) -> Slot:
    """Put values (in the order of their indices) where the layout wants them."""
    values = np.asarray(values)
    first = int(batched)
    strides = [0] * values.ndim
    reach = 1 + apart  # in elements, of what has a stride so far
    for axis in NEAREST[layout]:
        strides[first + axis] = reach
        room = int(rng.integers(1, 4)) if gaps and explicit else 0
        reach *= max(values.shape[first + axis] + room, 1)
    if batched:
        strides[0] = reach + (int(rng.integers(1, 9)) if gaps else 0)
        reach = strides[0] * max(values.shape[0], 1)
    itemsize = values.dtype.itemsize
    lead = 64 + int(misaligned)
    buffer = np.zeros(lead + reach * itemsize + 64, np.uint8)
    filler = np.full(reach, 1 if values.dtype == bool else SENTINEL, values.dtype)
    buffer[lead : lead + reach * itemsize] = filler.view(np.uint8)
    steps = [n * itemsize for n in strides]
    array = np.ndarray(values.shape, values.dtype, buffer, lead, strides=steps)
    array[...] = values
    slot = Slot(layout, array, buffer, batched, explicit, flags)
    slot.keep_state()
    return slot


@dataclass
class Options:
    """What a problem has; drawn at random where not given."""

    batch: int = 2
    T: int = 3
    S: int = 5
    d_model: int = 6
    k_dim: int = 5
    v_dim: int = 7
    heads: int = 2
    d_key: int = 4
    d_value: int = 3
    biases: tuple[bool, bool, bool, bool] = (True, True, True, True)
    attention_biases: bool = False
    zero_row: bool = False
    key_mask: bool = False
    attention: str = "none"  # none, or float / bool with 2, 3 or 4 indices: "float 3"
    dropout: float = 0.0
    client: bool = False
    threads: int = 0
    dtypes: tuple[np.dtype[Any], ...] = (FLOAT32,)
    gaps: bool = False
    explicit: bool = True
    misaligned: bool = False
    apart: bool = False  # neighbours, too: every second element is skipped
    accumulate: bool = False
    shared: bool = False  # key and value are one array
    allocator: Any = None

    @classmethod
    def draw(cls, rng: np.random.Generator, **given: Any) -> Options:
        """A random one."""

        def flip(p: float = 0.5) -> bool:
            return bool(rng.random() < p)

        sizes = {
            name: int(rng.integers(1, 12))
            for name in ("T", "S", "d_model", "k_dim", "v_dim", "d_key", "d_value")
        }
        kinds = ["none", "none", *(f"{kind} {n}" for kind in ("float", "bool") for n in (2, 3, 4))]
        drawn = cls(
            **sizes,
            batch=int(rng.integers(0, 4)) if flip(0.3) else int(rng.integers(1, 4)),
            heads=int(rng.integers(1, 4)),
            biases=(flip(), flip(), flip(), flip()),
            attention_biases=flip(),
            zero_row=flip(),
            key_mask=flip(),
            attention=str(rng.choice(kinds)),
            dropout=float(rng.choice([0.0, 0.0, 0.3])),
            client=flip(),
            threads=int(rng.integers(0, 3)),
            dtypes=DTYPES if flip() else (FLOAT32,),
            gaps=flip(),
            explicit=flip(),
            misaligned=flip(0.2),
            accumulate=flip(),
        )
        if flip(0.1):
            drawn.T, drawn.S = 70, 130  # more than one tile
        for name, value in given.items():
            setattr(drawn, name, value)
        return drawn


GRADIENTS = ("query", "key", "value")


@dataclass
class Problem:
    """A layer's arrays, its filter, and the gradients' arrays."""

    options: Options
    slots: dict[str, Slot]
    grads: dict[str, Slot]
    seed: int = 12345
    filter: Any = None
    cache: Any = None
    cache_size: int = 0
    calls: int = 0
    cache_before: Any = None

    @classmethod
    def make(cls, rng: np.random.Generator, o: Options) -> Problem:
        def slot(
            shape: tuple[int, ...],
            *,
            batched: bool = False,
            flags: Any = None,
            kind: str = "float",
            scale: float = 1.0,
        ) -> Slot:
            rank = len(shape) - batched
            values: Any
            if kind == "bool":
                values = rng.random(shape) < 0.4
            else:
                dtype = o.dtypes[int(rng.integers(len(o.dtypes)))]
                values = (scale * rng.standard_normal(shape)).astype(np.float32).astype(dtype)
            layouts = LAYOUTS[rank]
            return place(
                rng,
                values,
                layouts[int(rng.integers(len(layouts)))],
                gaps=o.gaps,
                batched=batched,
                explicit=o.explicit or bool(rng.random() < 0.3),
                flags=NDArrayFlags.BackpropSet if flags is None else flags,
                misaligned=o.misaligned and kind == "float",
                apart=o.apart,
            )

        def flag() -> NDArrayFlags:
            return NDArrayFlags(int(o.accumulate and rng.random() < 0.7))

        n, h = o.batch, o.heads
        shapes = {
            "query": (n, o.T, o.d_model),
            "key": (n, o.S, o.k_dim),
            "value": (n, o.S, o.v_dim),
            "output": (n, o.T, o.d_model),
            "d_output": (n, o.T, o.d_model),
        }
        parameters: dict[str, tuple[int, ...]] = {
            "query.weights": (o.d_model, o.d_key, h),
            "key.weights": (o.k_dim, o.d_key, h),
            "value.weights": (o.v_dim, o.d_value, h),
            "output.weights": (h * o.d_value, o.d_model),
        }
        dims = {"query": (o.d_key, h), "key": (o.d_key, h), "value": (o.d_value, h)}
        for has, name in zip(o.biases, (*GRADIENTS, "output"), strict=True):
            if has:
                parameters[f"{name}.bias"] = dims.get(name, (o.d_model,))
        if o.attention_biases:
            parameters["key_attn_bias"] = (o.d_key, h)
            parameters["value_attn_bias"] = (o.d_value, h)
        slots = {name: slot(shape, batched=True) for name, shape in shapes.items()}
        for name, shape in parameters.items():  # weights as layers have them, by their inputs
            slots[name] = slot(shape, scale=shape[0] ** -0.5 if "weights" in name else 1.0)
        if o.key_mask:
            slots["key_mask"] = slot((n, o.S), batched=True, kind="bool")
        if o.attention != "none":
            kind, rank = o.attention.split()
            shape = (n, h, o.T, o.S)[4 - int(rank) :]
            slots["attention"] = slot(shape, kind=kind)
        grads = {name: slot(shapes[name], batched=True, flags=flag()) for name in GRADIENTS}
        grads |= {name: slot(shape, flags=flag()) for name, shape in parameters.items()}
        return cls(o, slots, grads)

    # calls

    def layer(self) -> bnns.LayerParametersMultiheadAttention:
        """The struct that create takes."""
        s, o = self.slots, self.options
        layer = bnns.LayerParametersMultiheadAttention(
            add_zero_attn=o.zero_row, dropout=o.dropout, seed=self.seed
        )
        for name in (*GRADIENTS, "output"):
            projection = bnns.MHAProjectionParameters(
                target_desc=s[name].descriptor(data=False),
                weights=s[f"{name}.weights"].descriptor(),
            )
            if f"{name}.bias" in s:
                projection.bias = s[f"{name}.bias"].descriptor()
            setattr(layer, name, projection)
        for name in ("key_attn_bias", "value_attn_bias"):
            if name in s:
                setattr(layer, name, s[name].descriptor())
        return layer

    def filter_parameters(self) -> bnns.FilterParameters:
        """The options of the filter."""
        flags = bnns.FilterFlags.UseClientPtr if self.options.client else 0
        made = bnns.FilterParameters(flags=flags, n_threads=self.options.threads)
        if self.options.allocator is not None:
            made.alloc_memory, made.free_memory = self.options.allocator
        return made

    def create(self) -> None:
        self.filter = bnns.Filter(self.layer(), self.filter_parameters())

    def mask(self, name: str) -> bnns.NDArrayDescriptor | None:
        if name not in self.slots:
            return None
        d = self.slots[name].descriptor()
        if name == "key_mask":
            d.stride[2] = 0
        return d

    def forward_arguments(self, **given: Any) -> list[Any]:
        """The 17 parameters; those given by name replace ours."""
        s = self.slots
        ours = {
            "F": self.filter,
            "batch_size": self.options.batch,
            "query": s["query"].array,
            "query_stride": s["query"].stride,
            "key": s["key"].array,
            "key_stride": s["key"].stride,
            "key_mask": self.mask("key_mask"),
            "key_mask_stride": s["key_mask"].stride if "key_mask" in s else 0,
            "value": s["value"].array,
            "value_stride": s["value"].stride,
            "output": s["output"].array,
            "output_stride": s["output"].stride,
            "add_to_attention": self.mask("attention"),
            "backprop_cache_size": None,
            "backprop_cache": None,
            "workspace_size": None,
            "workspace": None,
        }
        assert set(given) <= set(ours), given
        return list((ours | given).values())

    def backward_arguments(self, **given: Any) -> list[Any]:
        """The 23 parameters."""
        s = self.slots
        ours = {
            "F": self.filter,
            "batch_size": self.options.batch,
            "query": s["query"].array,
            "query_stride": s["query"].stride,
            "query_param_delta": self.delta("query"),
            "key": s["key"].array,
            "key_stride": s["key"].stride,
            "key_mask": self.mask("key_mask"),
            "key_mask_stride": s["key_mask"].stride if "key_mask" in s else 0,
            "key_param_delta": self.delta("key"),
            "value": s["value"].array,
            "value_stride": s["value"].stride,
            "value_param_delta": self.delta("value"),
            "add_to_attention": self.mask("attention"),
            "key_attn_bias_delta": self.delta_of("key_attn_bias"),
            "value_attn_bias_delta": self.delta_of("value_attn_bias"),
            "output": s["output"].array,
            "output_stride": s["output"].stride,
            "output_param_delta": self.delta("output"),
            "backprop_cache_size": 0,
            "backprop_cache": None,
            "workspace_size": None,
            "workspace": None,
        }
        assert set(given) <= set(ours), given
        return list((ours | given).values())

    def delta_of(self, name: str) -> bnns.NDArrayDescriptor | None:
        return self.grads[name].descriptor() if name in self.grads else None

    def delta(self, name: str) -> bnns.MHAProjectionParameters:
        target = self.slots["d_output"] if name == "output" else self.grads[name]
        d = bnns.MHAProjectionParameters(
            target_desc=target.descriptor(), weights=self.grads[f"{name}.weights"].descriptor()
        )
        if f"{name}.bias" in self.grads:
            d.bias = self.grads[f"{name}.bias"].descriptor()
        return d

    def forward(self, **given: Any) -> None:
        bnns.BNNSApplyMultiheadAttention(*self.forward_arguments(**given))
        self.calls += 1

    def forward_with_cache(self) -> None:
        size = c_size_t()
        self.forward(backprop_cache_size=size)
        self.calls -= 1
        self.cache_size = size.value
        self.cache = np.zeros(self.cache_size, np.uint8)
        self.forward(backprop_cache_size=size, backprop_cache=self.cache)

    def backward(self, cached: bool, **given: Any) -> None:
        cache = {"backprop_cache_size": self.cache_size, "backprop_cache": self.cache}
        bnns.BNNSApplyMultiheadAttentionBackward(
            *self.backward_arguments(**((cache if cached else {}) | given))
        )

    # what should come out

    def oracle(
        self, counter: int = 0
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, float]]:
        """Output, gradients by slot, and how large those through the scores would be."""
        s, o = self.slots, self.options

        def ones(x: np.ndarray) -> np.ndarray:  # the bias is the weight of a feature of ones
            return np.concatenate([x, np.ones((*x.shape[:-1], 1))], -1)

        params: dict[str, np.ndarray] = {}
        for name, letter in zip(GRADIENTS, "qkv", strict=True):
            w = s[f"{name}.weights"].values  # in, d, h
            dim = w.shape[1] * w.shape[2]
            matrix = w.transpose(2, 1, 0).reshape(dim, -1)
            bias = s[f"{name}.bias"].values.T.reshape(dim, 1) if f"{name}.bias" in s else 0.0
            params[f"{letter}_proj_weight"] = np.concatenate(
                [matrix, np.broadcast_to(bias, (dim, 1))], 1
            )
        params["out_proj.weight"] = s["output.weights"].values.T
        if "output.bias" in s:
            params["out_proj.bias"] = s["output.bias"].values
        if o.attention_biases:
            params["bias_k"] = s["key_attn_bias"].values.T.reshape(1, 1, -1)
            params["bias_v"] = s["value_attn_bias"].values.T.reshape(1, 1, -1)
        attention = s["attention"].array if "attention" in s else None
        if attention is not None and attention.dtype != bool:
            attention = attention.astype(np.float64)
        result = reference.forward(
            params,
            *(ones(s[name].values) for name in GRADIENTS),
            num_heads=o.heads,
            key_padding_mask=s["key_mask"].array if "key_mask" in s else None,
            attn_mask=attention,
            add_zero_attn=o.zero_row,
            dropout=o.dropout,
            seed=self.seed,
            counter=counter,
        )
        d_out = s["d_output"].values
        found = reference.backward(result, d_out)
        sizes = magnitudes(result, d_out)
        grads: dict[str, np.ndarray] = {}
        scale: dict[str, float] = {}
        for name, letter in zip(GRADIENTS, "qkv", strict=True):
            grads[name] = found[name][..., :-1]
            dim = o.d_value if name == "value" else o.d_key
            w = found[f"{letter}_proj_weight"].reshape(o.heads, dim, -1)
            grads[f"{name}.weights"] = w[..., :-1].transpose(2, 1, 0)
            grads[f"{name}.bias"] = w[..., -1].T
            if name != "value":
                scale[name] = sizes[name]
                scale[f"{name}.weights"] = sizes[f"{letter}_proj_weight"]
                scale[f"{name}.bias"] = sizes[f"{letter}_proj_weight"]
        grads["output.weights"] = found["out_proj.weight"].T
        if "output.bias" in s:
            grads["output.bias"] = found["out_proj.bias"]
        if o.attention_biases:
            grads["key_attn_bias"] = found["bias_k"].reshape(o.heads, -1).T
            grads["value_attn_bias"] = found["bias_v"].reshape(o.heads, -1).T
            scale["key_attn_bias"] = sizes["bias_k"]
        grads = {name: x for name, x in grads.items() if name in self.grads}
        return result.out, grads, scale
