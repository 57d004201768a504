"""The layer's three primitives: forward, its linear part, and backward, which transposes that.

Forward and backward are the engine's. The linear part, the tangents of the results, is composed;
reverse mode transposes it and never runs it. What derivatives of derivatives need is composed too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from multihead.jax import layer_batching, layer_calls
from multihead.jax.calls import devices_needed
from multihead.jax.layer_composed import composed_layer
from multihead.jax.layer_form import LayerForm
from multihead.jax.manual import varying_alike

# operands -> out, weights if any, a cache (N, cache) if that is not 0
forward_p = Primitive("multihead_layer_forward")
# operands, cache, tangents of the operands `wrt` -> tangents of out and weights
tangent_p = Primitive("multihead_layer_tangent")
# operands, cache, d_out, d_weights if any -> gradients of the operands `wrt`
backward_p = Primitive("multihead_layer_backward")


def layer(form: LayerForm, operands: Sequence[Any]) -> list[Any]:
    """Return the output and, if the call asks for them, the weights."""
    return bind(forward_p, *varying_alike(list(operands)), form=form, cache=0)


def bind(primitive: Primitive, *args: Any, **static: Any) -> list[Any]:
    """Call one of the primitives."""
    results: list[Any] = primitive.bind(*args, **static, needs=devices_needed())
    return results


# What they compute


def _forward(*operands: Any, form: LayerForm, cache: int) -> Sequence[Any]:
    return layer_calls.forward(form, operands, cache)


def _tangent(*args: Any, form: LayerForm, wrt: tuple[int, ...]) -> Sequence[Any]:
    operands, tangents = args[: form.arity], args[form.arity + 1 :]
    partial, at = _function_of(form, operands, wrt)
    moved: Sequence[Any] = jax.jvp(partial, at, tuple(tangents))[1]
    return moved


def _backward(*args: Any, form: LayerForm, wrt: tuple[int, ...]) -> Sequence[Any]:
    operands, cache, *d_results = args[: form.arity], *args[form.arity :]
    return layer_calls.backward(form, operands, cache, d_results, wrt)


def _composed_backward(*args: Any, form: LayerForm, wrt: tuple[int, ...]) -> Sequence[Any]:
    operands, d_results = args[: form.arity], list(args[form.arity + 1 :])
    partial, at = _function_of(form, operands, wrt)
    results, transposed = jax.vjp(partial, *at)
    d_results += [jnp.zeros_like(x) for x in results[len(d_results) :]]
    gradients: Sequence[Any] = transposed(d_results)
    return gradients


def _function_of(
    form: LayerForm, operands: Sequence[Any], wrt: tuple[int, ...]
) -> tuple[Callable[..., list[Any]], tuple[Any, ...]]:
    """Return the composed layer as a function of some operands, and these."""

    def partial(*some: Any) -> list[Any]:
        given = dict(zip(wrt, some, strict=True))
        return composed_layer(form, [given.get(i, x) for i, x in enumerate(operands)])

    return partial, tuple(operands[i] for i in wrt)


# What their results look like


def _forward_results(*operands: Any, form: LayerForm, cache: int) -> list[Any]:
    return layer_calls.types_of(form, operands, cache)


def _tangent_results(*args: Any, form: LayerForm, wrt: tuple[int, ...]) -> list[Any]:
    return layer_calls.types_of(form, args[: form.arity], 0)


def _backward_results(*args: Any, form: LayerForm, wrt: tuple[int, ...]) -> list[Any]:
    return layer_calls.types_of_gradients(form, args[: form.arity], wrt)


# Derivatives


def _forward_jvp(
    operands: Sequence[Any], tangents: Sequence[Any], *, form: LayerForm, cache: int, needs: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    size = cache or layer_calls.cache_bytes(form, operands)
    *results, kept = bind(forward_p, *operands, form=form, cache=size)
    wrt = tuple(i for i, t in enumerate(tangents) if _moves(t))
    some = [tangents[i] for i in wrt]
    moved = bind(tangent_p, *varying_alike([*operands, kept, *some]), form=form, wrt=wrt)
    if not cache:
        return results, moved
    return [*results, kept], [*moved, ad.Zero(jax.typeof(kept).to_tangent_aval())]


def _moves(tangent: Any) -> bool:
    return type(tangent) is not ad.Zero and tangent.dtype != jax.dtypes.float0


def _tangent_transpose(
    d_results: Sequence[Any], *args: Any, form: LayerForm, wrt: tuple[int, ...], needs: Any
) -> list[Any]:
    operands, cache, *tangents = args[: form.arity], *args[form.arity :]
    d_out, *d_weights = d_results
    d_weights = [d for d in d_weights if type(d) is not ad.Zero]
    asked = tuple(i for i, t in zip(wrt, tangents, strict=True) if ad.is_undefined_primal(t))
    given = [*operands, cache, ad.instantiate_zeros(d_out), *d_weights]
    found = iter(bind(backward_p, *varying_alike(given), form=form, wrt=asked))
    gradients = [next(found) if ad.is_undefined_primal(t) else None for t in tangents]
    return [None] * (form.arity + 1) + gradients


def _composed_jvp(
    primitive: Primitive,
    composed: Callable[..., Sequence[Any]],
    args: Sequence[Any],
    tangents: Sequence[Any],
    *,
    needs: Any,
    **static: Any,
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return a primitive's results, and their tangents by what it is composed of."""
    moving = [i for i, t in enumerate(tangents) if _moves(t)]

    def partial(*some: Any) -> Sequence[Any]:
        given = dict(zip(moving, some, strict=True))
        return composed(*(given.get(i, x) for i, x in enumerate(args)), **static)

    at = tuple(args[i] for i in moving)
    moved = jax.jvp(partial, at, tuple(tangents[i] for i in moving))[1]
    return bind(primitive, *args, **static), moved


def _register(
    primitive: Primitive, function: Callable[..., Any], results: Callable[..., Any]
) -> None:
    def computed(*args: Any, needs: Any, **static: Any) -> Any:
        return function(*args, **static)

    def types(*args: Any, needs: Any, **static: Any) -> Any:
        return results(*args, **static)

    @functools.lru_cache(maxsize=256)
    def compiled(**static: Any) -> Callable[..., Any]:
        jitted: Callable[..., Any] = jax.jit(functools.partial(computed, **static))
        return jitted

    primitive.multiple_results = True
    primitive.def_impl(lambda *args, **static: compiled(**static)(*args))
    primitive.def_abstract_eval(types)
    mlir.register_lowering(primitive, mlir.lower_fun(computed, multiple_results=True))


_register(forward_p, _forward, _forward_results)
_register(tangent_p, _tangent, _tangent_results)
_register(backward_p, _backward, _backward_results)
ad.primitive_jvps[forward_p] = _forward_jvp
ad.primitive_jvps[tangent_p] = functools.partial(_composed_jvp, tangent_p, _tangent)
ad.primitive_jvps[backward_p] = functools.partial(_composed_jvp, backward_p, _composed_backward)
ad.primitive_transposes[tangent_p] = _tangent_transpose
for _primitive, _rule in (
    (forward_p, layer_batching.forward),
    (tangent_p, layer_batching.tangent),
    (backward_p, layer_batching.backward),
):
    batching.primitive_batchers[_primitive] = functools.partial(_rule, _primitive)
