"""The native engine of multihead; the Python modules say what is wrong first."""

import numpy
import numpy.typing

import multihead.arguments

class Cache:
    pass

def layer_forward(
    options: multihead.arguments.LayerOptions,
    tensors: multihead.arguments.LayerTensors,
    offsets: tuple[object, object] | None,
    out: object,
    weights: object | None,
    keep: object,
) -> Cache | None: ...
def layer_backward(
    options: multihead.arguments.LayerOptions,
    tensors: multihead.arguments.LayerTensors,
    offsets: tuple[object, object] | None,
    cache: object,
    d_out: object,
    d_weights: object | None,
    gradients: multihead.arguments.LayerTensors,
) -> None: ...
def cached_forward(
    options: multihead.arguments.LayerOptions,
    tensors: multihead.arguments.LayerTensors,
    cache: multihead.arguments.CachedKeys,
    out: object,
    weights: object | None,
) -> None: ...
def attention_forward(
    options: multihead.arguments.AttentionOptions,
    tensors: multihead.arguments.AttentionTensors,
    out: object,
    stats: object | None,
    weights: object | None,
) -> None: ...
def attention_backward(
    options: multihead.arguments.AttentionOptions,
    tensors: multihead.arguments.AttentionTensors,
    stats: object,
    delta: object,
    d_out: object,
    gradients: multihead.arguments.AttentionTensors,
) -> None: ...
def delta(d_out: object, out: object, result: object) -> None: ...
def merge_attention(
    outs: tuple[object, ...], lses: tuple[object, ...], out: object, lse: object
) -> None: ...
def exchange_with(type: type, capsule: object) -> bool: ...
def bfloat16_bits(array: object) -> numpy.typing.NDArray[numpy.uint16]: ...
def dlpack_bfloat16(bits: numpy.typing.NDArray[numpy.uint16]) -> object: ...
def set_num_threads(threads: int) -> None: ...
def get_num_threads() -> int: ...
def set_little(multiplications: int) -> None: ...
def isa() -> str: ...
def use_isa(name: str) -> str: ...
def available_isas() -> list[str]: ...
def add_kernels(set: int) -> None: ...
