"""What type checkers see of the calls whose results are of the caller's kind of array.

A NumPy array in gives NumPy arrays out, with its dtype; a `Ragged` gives a `Ragged`; an array of
any other kind its own kind. Nothing here runs: `typed_as` hands a function back as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from multihead.ragged import Ragged
from multihead.seeds import Seed

if TYPE_CHECKING:
    from multihead.functional import AttentionCache

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])
Size = TypeVar("Size", bound=tuple[Any, ...])
T = TypeVar("T", bound=np.generic)
Lse: TypeAlias = "NDArray[np.floating[Any]]"


def typed_as(signature: F) -> Callable[[Callable[..., Any]], F]:
    """Show a function to type checkers with the overloads of `signature`."""

    def unchanged(function: Any) -> F:
        return function  # type: ignore[no-any-return]  # by the test that holds names together

    return unchanged


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
    seed: Seed = None,
    return_lse: bool = False,
    return_cache: bool = False,
) -> Any: ...


def attention_call(*args: Any, **options: Any) -> Any:
    """Stand for `functional.scaled_dot_product_attention`."""
    raise NotImplementedError


@overload
def attention_backward(
    d_out: NDArray[T], cache: Any, *, need_mask_grad: Literal[False] = False
) -> tuple[NDArray[T], NDArray[T], NDArray[T]]: ...


@overload
def attention_backward(
    d_out: NDArray[T], cache: Any, *, need_mask_grad: Literal[True]
) -> tuple[NDArray[T], NDArray[T], NDArray[T], NDArray[T] | None]: ...


@overload
def attention_backward(
    d_out: A, cache: Any, *, need_mask_grad: Literal[False] = False
) -> tuple[A, A, A]: ...


@overload
def attention_backward(
    d_out: A, cache: Any, *, need_mask_grad: Literal[True]
) -> tuple[A, A, A, A | None]: ...


@overload
def attention_backward(
    d_out: Any, cache: Any, *, need_mask_grad: bool = False
) -> tuple[Any, ...]: ...


def attention_backward(*args: Any, **options: Any) -> Any:
    """Stand for `functional.scaled_dot_product_attention_backward`."""
    raise NotImplementedError
