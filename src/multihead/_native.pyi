"""The native engine of multihead: no validation, see the Python modules."""

import numpy
import numpy.typing

class Cache:
    """What backward needs of one forward. Opaque."""

def layer_forward(
    num_heads: int,
    add_zero_attn: bool,
    params: tuple[object, ...],
    inputs: tuple[object, ...],
    offsets: object | None,
    masks: tuple[object, ...],
    is_causal: bool,
    dropout: tuple[float, int, int],
    out: object,
    weights: object | None,
    average: bool,
    keep: bool,
) -> Cache | None: ...
def layer_backward(
    num_heads: int,
    add_zero_attn: bool,
    params: tuple[object, ...],
    inputs: tuple[object, ...],
    offsets: object | None,
    masks: tuple[object, ...],
    is_causal: bool,
    dropout: tuple[float, int, int],
    cache: Cache,
    d_out: object,
    d_weights: object | None,
    average: bool,
    d_inputs: tuple[object, ...],
    d_params: tuple[object, ...],
    d_masks: tuple[object, ...],
) -> None: ...
def attention_forward(
    q: object,
    k: object,
    v: object,
    attn_mask: object | None,
    true_hides: bool,
    is_causal: bool,
    scale: float,
    dropout: tuple[float, int, int],
    offsets: tuple[int, int, int, int],
    out: object,
    stats: object | None,
    weights: object | None,
) -> None: ...
def attention_backward(
    q: object,
    k: object,
    v: object,
    attn_mask: object | None,
    true_hides: bool,
    is_causal: bool,
    scale: float,
    dropout: tuple[float, int, int],
    offsets: tuple[int, int, int, int],
    stats: object,
    delta: object,
    d_out: object,
    d_q: object,
    d_k: object,
    d_v: object,
    d_attn_mask: object | None,
) -> None: ...
def delta(d_out: object, out: object, result: object) -> None: ...
def bfloat16_bits(array: object) -> numpy.typing.NDArray[numpy.uint16]: ...
def dlpack_bfloat16(bits: numpy.typing.NDArray[numpy.uint16]) -> object: ...
def exchange_with(type: type, capsule: object) -> bool: ...
def tensor_forward(
    options: tuple[object, ...],
    tensors: tuple[object, ...],
    offsets: tuple[object, object] | None,
    out: object,
    weights: object | None,
    keep: object,
) -> object: ...
def tensor_backward(
    options: tuple[object, ...],
    tensors: tuple[object, ...],
    offsets: tuple[object, object] | None,
    cache: object,
    d_out: object,
    d_weights: object | None,
    gradients: tuple[object, ...],
) -> None: ...
def set_num_threads(threads: int) -> None: ...
def get_num_threads() -> int: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def fma_peak(seconds: float, threads: int, float64: bool) -> float: ...
def region_seconds(iterations: int) -> float: ...
