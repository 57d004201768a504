"""The signatures of the layer: its options, and the overloads of its call and backward."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from multihead.kv_cache import KVCache
from multihead.ragged import Ragged
from multihead.score_rules import Window
from multihead.seeds import Seed

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Size = TypeVar("Size", bound=tuple[Any, ...])
T = TypeVar("T", bound=np.generic)


def layer_init(
    self: Any,
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
) -> None:
    """Stand for `MultiheadAttention.__init__`, where a misspelt option has an error of its own."""
    raise NotImplementedError


@overload
def layer_call(
    self: Any,
    query: Ragged[A],
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: Literal[True] = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    kv_cache: KVCache | None = None,
) -> tuple[Ragged[A], list[A]]: ...


@overload
def layer_call(
    self: Any,
    query: Ragged[A],
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    *,
    need_weights: Literal[False],
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    kv_cache: KVCache | None = None,
) -> tuple[Ragged[A], None]: ...


@overload
def layer_call(
    self: Any,
    query: Ragged[A],
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    kv_cache: KVCache | None = None,
) -> tuple[Ragged[A], list[A] | None]: ...


@overload
def layer_call(
    self: Any,
    query: np.ndarray[Size, np.dtype[T]],
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: Literal[True] = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    kv_cache: KVCache | None = None,
) -> tuple[np.ndarray[Size, np.dtype[T]], NDArray[T]]: ...


@overload
def layer_call(
    self: Any,
    query: np.ndarray[Size, np.dtype[T]],
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    *,
    need_weights: Literal[False],
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    kv_cache: KVCache | None = None,
) -> tuple[np.ndarray[Size, np.dtype[T]], None]: ...


@overload
def layer_call(
    self: Any,
    query: np.ndarray[Size, np.dtype[T]],
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    kv_cache: KVCache | None = None,
) -> tuple[np.ndarray[Size, np.dtype[T]], NDArray[T] | None]: ...


@overload
def layer_call(
    self: Any,
    query: A,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: Literal[True] = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    kv_cache: KVCache | None = None,
) -> tuple[A, A]: ...


@overload
def layer_call(
    self: Any,
    query: A,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    *,
    need_weights: Literal[False],
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    kv_cache: KVCache | None = None,
) -> tuple[A, None]: ...


@overload
def layer_call(
    self: Any,
    query: A,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    kv_cache: KVCache | None = None,
) -> tuple[A, A | None]: ...


def layer_call(*args: Any, **options: Any) -> Any:
    """Stand for `MultiheadAttention.__call__`."""
    raise NotImplementedError


@overload
def layer_backward(
    self: Any,
    d_out: Ragged[A],
    d_weights: Any = None,
    *,
    cache: Any = None,
    out: None = None,
    need_mask_grad: Literal[False] = False,
) -> tuple[Ragged[A], Ragged[A], Ragged[A]]: ...


@overload
def layer_backward(
    self: Any,
    d_out: Ragged[A],
    d_weights: Any = None,
    *,
    cache: Any = None,
    out: None = None,
    need_mask_grad: Literal[True],
) -> tuple[Ragged[A], Ragged[A], Ragged[A], A | None, A | None]: ...


@overload
def layer_backward(
    self: Any,
    d_out: NDArray[T],
    d_weights: Any = None,
    *,
    cache: Any = None,
    out: None = None,
    need_mask_grad: Literal[False] = False,
) -> tuple[NDArray[T], NDArray[T], NDArray[T]]: ...


@overload
def layer_backward(
    self: Any,
    d_out: NDArray[T],
    d_weights: Any = None,
    *,
    cache: Any = None,
    out: None = None,
    need_mask_grad: Literal[True],
) -> tuple[NDArray[T], NDArray[T], NDArray[T], NDArray[T] | None, NDArray[T] | None]: ...


@overload
def layer_backward(
    self: Any,
    d_out: A,
    d_weights: Any = None,
    *,
    cache: Any = None,
    out: None = None,
    need_mask_grad: Literal[False] = False,
) -> tuple[A, A, A]: ...


@overload
def layer_backward(
    self: Any,
    d_out: A,
    d_weights: Any = None,
    *,
    cache: Any = None,
    out: None = None,
    need_mask_grad: Literal[True],
) -> tuple[A, A, A, A | None, A | None]: ...


@overload
def layer_backward(
    self: Any,
    d_out: Any,
    d_weights: Any = None,
    *,
    cache: Any = None,
    out: tuple[A, B, C],
    need_mask_grad: Literal[False] = False,
) -> tuple[A, B, C]: ...


@overload
def layer_backward(
    self: Any,
    d_out: object,
    d_weights: Any = None,
    *,
    cache: Any = None,
    out: Any = None,
    need_mask_grad: bool,
) -> tuple[Any, ...]: ...


def layer_backward(*args: Any, **options: Any) -> Any:
    """Stand for `MultiheadAttention.backward`."""
    raise NotImplementedError
