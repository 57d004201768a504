"""The layer under `jax.vmap`: one call of a larger batch wherever the parameters are not mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from multihead.jax.layer_form import INPUTS, MASKS, LayerForm, shape_of

_Mapped = tuple[Sequence[Any], Sequence[int]]  # results, and where their new axes are


def forward(
    primitive: Primitive, args: Sequence[Any], dims: Sequence[int | None], **static: Any
) -> _Mapped:
    """Map forward; the cache of the larger batch has as much for each sequence."""
    form: LayerForm = static["form"]
    if not _folds(form, dims):
        return _one_by_one(primitive, args, dims, static)
    fold = _Fold(form, args, dims)
    return fold.results(primitive.bind(*fold.operands(args, dims), **static))


def tangent(
    primitive: Primitive, args: Sequence[Any], dims: Sequence[int | None], **static: Any
) -> _Mapped:
    """Map the linear part; with tangents of parameters that are mapped it is called one by one."""
    form, wrt = static["form"], static["wrt"]
    n = form.arity
    own = dims[n + 1 :]
    mapped = any(
        d is not None and _of_all_sequences(form, i) for i, d in zip(wrt, own, strict=True)
    )
    if mapped or dims[n] is None or not _folds(form, dims[:n]):
        return _one_by_one(primitive, args, dims, static)
    fold = _Fold(form, args, dims, {i for i, d in zip(wrt, own, strict=True) if d is not None})
    tangents = [fold.operand(i, x, d) for i, x, d in zip(wrt, args[n + 1 :], own, strict=True)]
    folded = [*fold.operands(args, dims), fold.result(args[n], dims[n], 0), *tangents]
    return fold.results(primitive.bind(*folded, **static))


def backward(
    primitive: Primitive, args: Sequence[Any], dims: Sequence[int | None], **static: Any
) -> _Mapped:
    """Map backward; gradients of parameters for each entry need a forward of its own again."""
    form, wrt = static["form"], static["wrt"]
    n = form.arity
    if dims[n] is None or not _folds(form, dims[:n]):
        return _one_by_one(primitive, args, dims, static)
    if any(_of_all_sequences(form, i) for i in wrt):
        return _one_by_one(primitive, args, dims, static, _forward_again(primitive, form))
    fold = _Fold(form, args, dims, set(wrt))
    d_results = [
        fold.result(x, d, 1 - form.tokens_axis if i == 0 else 0)
        for i, (x, d) in enumerate(zip(args[n + 1 :], dims[n + 1 :], strict=True))
    ]
    folded = [*fold.operands(args, dims), fold.result(args[n], dims[n], 0), *d_results]
    found = primitive.bind(*folded, **static)
    gradients = [fold.gradient(i, g, args[i], dims[i]) for i, g in zip(wrt, found, strict=True)]
    return gradients, [0] * len(gradients)


def _of_all_sequences(form: LayerForm, i: int) -> bool:
    """Whether an operand has nothing for each sequence: it is a parameter, or a table."""
    return i >= len(form.names) or form.names[i] not in (*INPUTS, *MASKS)


def _folds(form: LayerForm, dims: Sequence[int | None]) -> bool:
    """Whether all entries are sequences of one call. Dropout draws by a sequence's place."""
    mapped = {i for i, d in enumerate(dims[: form.arity]) if d is not None}
    return bool(mapped) and not form.drops and not any(_of_all_sequences(form, i) for i in mapped)


def _one_by_one(
    primitive: Primitive,
    args: Sequence[Any],
    dims: Sequence[int | None],
    static: dict[str, Any],
    function: Callable[..., Sequence[Any]] | None = None,
) -> _Mapped:
    """Call the primitive, or the function instead, for each entry."""
    mapped = {i: d for i, d in enumerate(dims) if d is not None}

    def one(entry: Sequence[Any]) -> Sequence[Any]:
        given = dict(zip(mapped, entry, strict=True))
        return (function or primitive.bind)(
            *(given.get(i, x) for i, x in enumerate(args)), **static
        )

    results = jax.lax.map(one, [jnp.moveaxis(args[i], d, 0) for i, d in mapped.items()])
    return results, [0] * len(results)


def _forward_again(primitive: Primitive, form: LayerForm) -> Callable[..., Sequence[Any]]:
    """Return backward of one entry, whose own cache is made anew."""
    from multihead.jax.layer_primitives import bind, forward_p

    def function(*args: Any, **static: Any) -> Sequence[Any]:
        operands, cache, d_results = args[: form.arity], args[form.arity], args[form.arity + 1 :]
        *_, own = bind(forward_p, *operands, form=form, cache=cache.shape[1])
        found: Sequence[Any] = primitive.bind(*operands, own, *d_results, **static)
        return found

    return function


class _Fold:
    """A mapped call as one of a larger batch: entries first, then their sequences.

    `expanded` are the operands, masks among them, that need an array for each sequence.
    """

    def __init__(
        self,
        form: LayerForm,
        args: Sequence[Any],
        dims: Sequence[int | None],
        expanded: set[int] | frozenset[int] = frozenset(),
    ) -> None:
        self.form = form
        pairs = list(zip(args, dims, strict=True))
        self.size = next(x.shape[d] for x, d in pairs if d is not None)
        one = [
            jax.ShapeDtypeStruct(x.shape if d is None else x.shape[:d] + x.shape[d + 1 :], x.dtype)
            for x, d in pairs[: form.arity]
        ]
        self.batch = shape_of(form, one).batch
        mapped = {i for i, d in enumerate(dims[: form.arity]) if d is not None}
        self._expanded = mapped | expanded

    def operands(self, args: Sequence[Any], dims: Sequence[int | None]) -> list[Any]:
        pairs = zip(args[: self.form.arity], dims, strict=False)
        return [self.operand(i, x, d) for i, (x, d) in enumerate(pairs)]

    def operand(self, i: int, x: Any, dim: int | None) -> Any:
        """Fold an operand, or what is like it."""
        if _of_all_sequences(self.form, i):
            return x
        name = self.form.names[i]
        if name in INPUTS:
            return self.result(x, dim, 1 - self.form.tokens_axis)
        shared = (
            name == "mask"
            and (x.shape[0] if dim is None else jnp.moveaxis(x, dim, 0).shape[1]) == 1
        )
        if shared and i not in self._expanded:
            return x
        if shared:  # one for all sequences of an entry
            x = jnp.expand_dims(x, 0) if dim is None else jnp.moveaxis(x, dim, 0)
            x = jnp.broadcast_to(x, (self.size, self.batch, *x.shape[2:]))
            dim = 0
        return self.result(x, dim, 0)

    def result(self, x: Any, dim: int | None, axis: int) -> Any:
        """Fold what has an axis of sequences."""
        if dim is None:
            x, dim = jnp.broadcast_to(x, (self.size, *x.shape)), 0
        x = jnp.moveaxis(x, dim, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def unfolded(self, x: Any, axis: int) -> Any:
        """Undo `result`; entries are then the axis before that of sequences."""
        return x.reshape(*x.shape[:axis], self.size, self.batch, *x.shape[axis + 1 :])

    def results(self, found: Sequence[Any]) -> _Mapped:
        """Return out, weights and cache, mapped."""
        axes = [1 - self.form.tokens_axis] + [0] * (len(found) - 1)
        unfolded = [self.unfolded(x, axis) for x, axis in zip(found, axes, strict=True)]
        return unfolded, axes

    def gradient(self, i: int, g: Any, operand: Any, dim: int | None) -> Any:
        """Return the gradient of a folded operand for each entry, with entries first."""
        axis = 1 - self.form.tokens_axis if self.form.names[i] in INPUTS else 0
        g = jnp.moveaxis(self.unfolded(g, axis), axis, 0)
        shape = operand.shape if dim is None else operand.shape[:dim] + operand.shape[dim + 1 :]
        return g if g.shape[1:] == shape else g.sum(1, keepdims=True)
