"""Attention as JAX differentiates it.

Reverse mode runs the engine's backward. Forward mode and whatever comes second differentiate the
composed version, in memory that grows with L times S.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from multihead.checks import wrong
from multihead.jax import engine
from multihead.jax.call import Options, Tensors
from multihead.jax.calls import result_type
from multihead.jax.composed import composed
from multihead.jax.linear import Arrays, apply

_LN2 = math.log(2.0)
_SMOOTH = ("query", "key", "value", "mask", "sinks")  # tensors that may have gradients


class Request(NamedTuple):
    """Options of a call, and whether it returns the rows' logarithms too."""

    options: Options
    lse: bool


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend(request: Request, tensors: Tensors) -> tuple[Any, ...]:
    """Attend with query, key and value.

    Returns
    -------
    out : array (N, L, H, Dv)
    lse : array (N, H, L)
        If asked for: of what is computed in.
    """
    if not request.lse:
        return engine.forward(tensors, request.options, keep=False)[:1]
    out, stats = engine.forward(tensors, request.options, keep=True)
    return out.astype(tensors.query.dtype), _natural(stats)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kept(request: Request, tensors: Tensors) -> tuple[Any, ...]:
    """Do the same, and return out in what is computed in, and last the statistics."""
    out, stats = engine.forward(tensors, request.options, keep=True)
    return (out, _natural(stats), stats) if request.lse else (out, stats)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _backward(
    request: Request, wanted: Sequence[str], tensors: Tensors, kept: Arrays, cotangents: Arrays
) -> list[Any]:
    """Return the gradients of the wanted tensors."""
    out, stats = kept
    return engine.backward(tensors, request.options, wanted, (out, stats), cotangents)


class _Differential(NamedTuple):
    """The derivative of attention at some tensors, as a linear function.

    Its residuals are the tensors that there are, out and statistics; its inputs the changes of the
    moving ones.
    """

    request: Request
    names: tuple[str, ...]
    moving: tuple[str, ...]

    def forward(self, residuals: Arrays, inputs: Arrays) -> Arrays:
        tensors = self._tensors(residuals)
        return list(jax.jvp(*_of(self.request, tensors, self.moving), list(inputs))[1])

    def transpose(self, residuals: Arrays, cotangents: Arrays) -> Arrays:
        tensors, kept = self._tensors(residuals), list(residuals[-2:])
        found: Arrays = _backward(self.request, self.moving, tensors, kept, list(cotangents))
        return found

    def results(self, residuals: Arrays, inputs: Arrays) -> Arrays:
        query, out, stats = residuals[0], *residuals[-2:]
        n, _, heads, length = stats.shape
        batch, _, *rows = stats.sharding.spec
        lse = result_type(stats, (n, heads, length), stats.dtype, [batch, *rows])
        return [out.update(dtype=query.dtype), lse][: 1 + self.request.lse]

    def _tensors(self, residuals: Arrays) -> Tensors:
        return Tensors(**dict(zip(self.names, residuals, strict=False)))


def _of(request: Request, tensors: Tensors, moving: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return attention as a function of the moving tensors, composed, and these."""

    def function(*given: Any) -> tuple[Any, ...]:
        changed = tensors._replace(**dict(zip(moving, given, strict=True)))
        return composed(changed, request.options)[: 1 + request.lse]

    return function, [getattr(tensors, name) for name in moving]


def _differentiated(request: Request, tensors: Tensors, changes: Tensors) -> tuple[Arrays, Arrays]:
    """Return what `_kept` does, and the changes of all but the statistics."""
    for name, x in changes._asdict().items():
        if x is not None and not isinstance(x, SymbolicZero) and name == "alibi_slopes":
            way = "slopes without a gradient (jax.lax.stop_gradient(alibi_slopes))"
            raise wrong(name, way, "one")
    moving = tuple(name for name in _SMOOTH if _moves(getattr(changes, name)))
    results = _kept(request, tensors)
    if not moving:
        return results, [jnp.zeros_like(x) for x in results[:-1]]
    given = {name: x for name, x in tensors._asdict().items() if x is not None}
    out, stats = map(jax.lax.stop_gradient, (results[0], results[-1]))
    differential = _Differential(request, tuple(given), moving)
    inputs = [getattr(changes, name) for name in moving]
    return results, apply(differential, [*given.values(), out, stats], inputs)


def _moves(change: Any) -> bool:
    return not (
        change is None or isinstance(change, SymbolicZero) or change.dtype == jax.dtypes.float0
    )


def _attend_jvp(request: Request, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (tensors,), (changes,) = primals, tangents
    (out, *lse, _), changed = _differentiated(request, tensors, changes)
    return (out.astype(tensors.query.dtype), *lse), tuple(changed)


def _kept_jvp(request: Request, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (tensors,), (changes,) = primals, tangents
    results, (d_out, *d_lse) = _differentiated(request, tensors, changes)
    return results, (d_out.astype(results[0].dtype), *d_lse, jnp.zeros_like(results[-1]))


def _backward_jvp(request: Request, wanted: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (tensors, kept, cotangents), (changes, _, moved) = primals, tangents
    gradients = _backward(request, wanted, tensors, kept, cotangents)
    moving = tuple(name for name in _SMOOTH if _moves(getattr(changes, name)))
    seeds = [i for i, x in enumerate(moved) if _moves(x)]

    def composed_gradients(inputs: Arrays, given: Arrays) -> Arrays:
        at = tensors._replace(**dict(zip(moving, inputs, strict=True)))
        seeded = list(cotangents)
        for i, x in zip(seeds, given, strict=True):
            seeded[i] = x
        function, wanted_ones = _of(request, at, wanted)
        return list(jax.vjp(function, *wanted_ones)[1](tuple(seeded)))

    at = [getattr(tensors, name) for name in moving], [cotangents[i] for i in seeds]
    by = [getattr(changes, name) for name in moving], [moved[i] for i in seeds]
    _, changed = jax.jvp(composed_gradients, at, by)
    return gradients, changed


def _natural(stats: Any) -> Any:
    """Return the logarithms of the rows' sums, (N, H, L)."""
    top, inverse = stats[:, 0], stats[:, 1]
    return jnp.where(inverse == 0, -jnp.inf, top * _LN2 - jnp.log(inverse))


attend.defjvp(_attend_jvp, symbolic_zeros=True)
_kept.defjvp(_kept_jvp, symbolic_zeros=True)
_backward.defjvp(_backward_jvp, symbolic_zeros=True)
