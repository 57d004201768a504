"""Linear functions that bring their own transposes, as a primitive of JAX.

Forward mode runs the function itself, reverse mode the transpose. vmap, scan and checkpoint pass
through; further derivatives differentiate the function as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from multihead.jax.calls import result_type

Arrays = Sequence[Any]


class Linear(Protocol):
    """A function of residuals and of linear inputs; equal ones are one to JAX's caches."""

    def __hash__(self) -> int: ...

    def forward(self, residuals: Arrays, inputs: Arrays) -> Arrays:
        """Return what is linear in `inputs`; JAX can differentiate it."""
        ...

    def transpose(self, residuals: Arrays, cotangents: Arrays) -> Arrays:
        """Return the cotangents of the inputs."""
        ...

    def results(self, residuals: Arrays, inputs: Arrays) -> Arrays:
        """Return types like those of the results, from types."""
        ...


def apply(function: Linear, residuals: Arrays, inputs: Arrays) -> list[Any]:
    """Call a linear function."""
    found: list[Any] = linear_p.bind(
        *residuals, *inputs, function=function, residuals=len(residuals)
    )
    return found


class _Mapped(NamedTuple):
    """A linear function under vmap, with the axes of its operands that are mapped."""

    function: Any
    residual_axes: tuple[int | None, ...]
    input_axes: tuple[int | None, ...]
    size: int

    def forward(self, residuals: Arrays, inputs: Arrays) -> Arrays:
        axes = list(self.residual_axes), list(self.input_axes)
        mapped = jax.vmap(self.function.forward, axes, axis_size=self.size)
        found: Arrays = mapped(list(residuals), list(inputs))
        return found

    def transpose(self, residuals: Arrays, cotangents: Arrays) -> Arrays:
        axes = list(self.residual_axes), 0
        mapped = jax.vmap(self.function.transpose, axes, axis_size=self.size)
        found = mapped(list(residuals), list(cotangents))
        return [
            x.sum(0) if axis is None else jnp.moveaxis(x, 0, axis)
            for x, axis in zip(found, self.input_axes, strict=True)
        ]

    def results(self, residuals: Arrays, inputs: Arrays) -> Arrays:
        def one(avals: Arrays, axes: tuple[int | None, ...]) -> Arrays:
            pairs = zip(avals, axes, strict=True)
            return [x if axis is None else _without(x, axis) for x, axis in pairs]

        of_one = self.function.results(
            one(residuals, self.residual_axes), one(inputs, self.input_axes)
        )
        return [
            result_type(x, (self.size, *x.shape), x.dtype, [None, *x.sharding.spec]) for x in of_one
        ]


def _without(aval: Any, axis: int) -> Any:
    kept = [i for i in range(aval.ndim) if i != axis]
    parts = [aval.sharding.spec[i] for i in kept]
    return result_type(aval, [aval.shape[i] for i in kept], aval.dtype, parts)


def _run(*operands: Any, function: Linear, residuals: int) -> Arrays:
    return function.forward(operands[:residuals], operands[residuals:])


def _results(*avals: Any, function: Linear, residuals: int) -> Arrays:
    return function.results(avals[:residuals], avals[residuals:])


def _jvp(primals: Arrays, tangents: Arrays, **how: Any) -> tuple[Arrays, Arrays]:
    n = how["residuals"]
    if all(isinstance(t, ad.Zero) for t in tangents[:n]):
        inputs = map(ad.instantiate_zeros, tangents[n:])
        return linear_p.bind(*primals, **how), linear_p.bind(*primals[:n], *inputs, **how)
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def of_moving(*given: Any) -> Arrays:
        operands = list(primals)
        for i, x in zip(moving, given, strict=True):
            operands[i] = x
        return list(_run(*operands, **how))

    found: tuple[Arrays, Arrays] = jax.jvp(
        of_moving, [primals[i] for i in moving], [tangents[i] for i in moving]
    )
    return found


def _transpose(cotangents: Arrays, *operands: Any, function: Linear, residuals: int) -> Arrays:
    given = [ad.instantiate_zeros(x) for x in cotangents]
    found = function.transpose(operands[:residuals], given)
    inputs = zip(found, operands[residuals:], strict=True)
    return [None] * residuals + [x if ad.is_undefined_primal(at) else None for x, at in inputs]


def _batch(
    operands: Arrays, axes: Arrays, *, function: Linear, residuals: int
) -> tuple[Arrays, Arrays]:
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    mapped = _Mapped(function, tuple(axes[:residuals]), tuple(axes[residuals:]), size)
    found = apply(mapped, operands[:residuals], operands[residuals:])
    return found, [0] * len(found)


linear_p = Primitive("multihead_linear")
linear_p.multiple_results = True
linear_p.def_impl(_run)
linear_p.def_abstract_eval(_results)
mlir.register_lowering(linear_p, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[linear_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
