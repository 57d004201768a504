"""The overloads of the functions of `multihead.functional`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from multihead.ragged import Ragged
from multihead.score_rules import Window
from multihead.seeds import Seed

if TYPE_CHECKING:
    from multihead.functional import AttentionCache

A = TypeVar("A")
Size = TypeVar("Size", bound=tuple[Any, ...])
T = TypeVar("T", bound=np.generic)
Lse: TypeAlias = "NDArray[np.floating[Any]]"


@overload
def attention_call(
    query: np.ndarray[Size, np.dtype[T]],
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: Literal[False] = False,
    return_cache: Literal[False] = False,
) -> np.ndarray[Size, np.dtype[T]]: ...


@overload
def attention_call(
    query: np.ndarray[Size, np.dtype[T]],
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: Literal[False] = False,
    return_cache: Literal[True],
) -> tuple[np.ndarray[Size, np.dtype[T]], AttentionCache]: ...


@overload
def attention_call(
    query: np.ndarray[Size, np.dtype[T]],
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: Literal[True],
    return_cache: Literal[False] = False,
) -> tuple[np.ndarray[Size, np.dtype[T]], Lse]: ...


@overload
def attention_call(
    query: np.ndarray[Size, np.dtype[T]],
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: Literal[True],
    return_cache: Literal[True],
) -> tuple[np.ndarray[Size, np.dtype[T]], Lse, AttentionCache]: ...


@overload
def attention_call(
    query: A,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: Literal[False] = False,
    return_cache: Literal[False] = False,
) -> A: ...


@overload
def attention_call(
    query: A,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: Literal[False] = False,
    return_cache: Literal[True],
) -> tuple[A, AttentionCache]: ...


@overload
def attention_call(
    query: A,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: Literal[True],
    return_cache: Literal[False] = False,
) -> tuple[A, A]: ...


@overload
def attention_call(
    query: A,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: Literal[True],
    return_cache: Literal[True],
) -> tuple[A, A, AttentionCache]: ...


@overload
def attention_call(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    query_offset: Any = 0,
    key_lengths: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    seed: Seed = None,
    return_lse: bool = False,
    return_cache: bool = False,
) -> Any: ...


def attention_call(*args: Any, **options: Any) -> Any:
    """Stand for `functional.scaled_dot_product_attention`."""
    raise NotImplementedError


@overload
def attention_backward(
    d_out: NDArray[T],
    cache: Any,
    *,
    need_mask_grad: Literal[False] = False,
    need_sink_grad: Literal[False] = False,
    d_lse: Any = None,
) -> tuple[NDArray[T], NDArray[T], NDArray[T]]: ...


@overload
def attention_backward(
    d_out: NDArray[T],
    cache: Any,
    *,
    need_mask_grad: Literal[True],
    need_sink_grad: Literal[False] = False,
    d_lse: Any = None,
) -> tuple[NDArray[T], NDArray[T], NDArray[T], NDArray[T] | None]: ...


@overload
def attention_backward(
    d_out: A,
    cache: Any,
    *,
    need_mask_grad: Literal[False] = False,
    need_sink_grad: Literal[False] = False,
    d_lse: Any = None,
) -> tuple[A, A, A]: ...


@overload
def attention_backward(
    d_out: Ragged[A],
    cache: Any,
    *,
    need_mask_grad: Literal[True],
    need_sink_grad: Literal[False] = False,
    d_lse: Any = None,
) -> tuple[Ragged[A], Ragged[A], Ragged[A], A | None]: ...


@overload
def attention_backward(
    d_out: A,
    cache: Any,
    *,
    need_mask_grad: Literal[True],
    need_sink_grad: Literal[False] = False,
    d_lse: Any = None,
) -> tuple[A, A, A, A | None]: ...


@overload
def attention_backward(
    d_out: Any,
    cache: Any,
    *,
    need_mask_grad: bool = False,
    need_sink_grad: bool = False,
    d_lse: Any = None,
) -> tuple[Any, ...]: ...


def attention_backward(*args: Any, **options: Any) -> Any:
    """Stand for `functional.scaled_dot_product_attention_backward`."""
    raise NotImplementedError
