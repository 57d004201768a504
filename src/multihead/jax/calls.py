"""Calls of the engine from XLA: a primitive that vmap, shard_map and meshes of devices know."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from multihead.jax.axes import Axes, partitions, sharding_rule, spread

Result = tuple[tuple[int, ...], Any]  # shape and dtype


class Call(NamedTuple):
    """What a custom call is, beside its operands.

    Attributes
    ----------
    target : str
    attributes : tuple of (str, scalar)
    axes : Axes
    results : tuple of Result
    draws : int or None
        Which operand is dropout's seed, whose last two words say where in the whole the sequences
        and heads of a device begin.
    """

    target: str
    attributes: tuple[tuple[str, Any], ...]
    axes: Axes
    results: tuple[Result, ...]
    draws: int | None = None


def run(call: Call, operands: Sequence[Any]) -> list[Any]:
    """Call the engine."""
    found: list[Any] = call_p.bind(*operands, call=call, needs=devices_needed())
    return found


@functools.cache
def devices_needed() -> Any:
    """Return a program of one partitioned call, by whose sight JAX tells lowerings the devices.

    A primitive that is lowered to calls has it among its parameters.
    """
    function = custom_partitioning(lambda x: x)
    function.def_partition(lambda *_: None, lambda *_: None, sharding_rule="->")
    return jax.make_jaxpr(function)(0.0)


def result_type(like: Any, shape: Sequence[int], dtype: Any, parts: Any = None) -> Any:
    """Return an array's type, that varies over devices as another one does."""
    spec = PartitionSpec(*(parts or [None] * len(shape)))
    sharding = NamedSharding(like.sharding.mesh, spec)
    return like.update(
        shape=tuple(shape), dtype=jnp.dtype(dtype), weak_type=False, sharding=sharding
    )


def result_types(avals: Sequence[Any], axes: Axes, results: Sequence[Result]) -> list[Any]:
    """Return the types of results, spread as operands are."""
    known = [(x.shape, _spec(x)) for x in avals]
    mesh = avals[0].sharding.mesh
    over = spread(axes, known, functools.partial(_devices, mesh))
    return [
        result_type(avals[0], shape, dtype, partitions(word, shape, over))
        for word, (shape, dtype) in zip(axes.results, results, strict=True)
    ]


def _types(*avals: Any, call: Call, needs: Any) -> list[Any]:
    return result_types(avals, call.axes, call.results)


def _devices(mesh: Any, part: Any) -> int:
    """Return over how many devices some axes of a mesh spread."""
    count = 1
    for name in part if isinstance(part, tuple) else (part,):
        count *= mesh.shape[name]
    return count


@functools.lru_cache(256)
def _compiled(call: Call) -> Any:
    return jax.jit(lambda *operands: run(call, operands))


def _run(*operands: Any, call: Call, needs: Any) -> Any:
    with jax.disable_jit(False):  # else it would come back here
        return _compiled(call)(*operands)


def _batch(
    operands: Sequence[Any], axes: Sequence[Any], *, call: Call, needs: Any
) -> tuple[Any, Any]:
    pairs = list(zip(operands, axes, strict=True))
    size = next(x.shape[axis] for x, axis in pairs if axis is not None)
    moved = [x[None] if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in pairs]
    results = tuple(((size, *shape), dtype) for shape, dtype in call.results)
    found = run(call._replace(results=results), moved)
    return found, [0] * len(found)


def _lower(ctx: Any, *operands: Any, call: Call, needs: Any) -> Any:
    if _is_alone(ctx.module_context.axis_context):
        return jax.ffi.ffi_lowering(call.target)(ctx, *operands, **dict(call.attributes))
    return mlir.lower_fun(_partitioned(call), multiple_results=True)(ctx, *operands)


def _is_alone(context: Any) -> bool:
    """Whether a program says itself what each device does, or has one, or does not know any."""
    manual = getattr(context, "manual_axes", None)
    if manual is not None:
        return set(manual) == set(context.mesh.axis_names)
    devices = getattr(context, "device_assignment", None)
    return devices is None or len(devices) == 1


def _partitioned(call: Call) -> Any:
    """Return the call as a function that is partitioned over devices."""
    function = custom_partitioning(lambda *operands: run(call, operands))

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        known = [(x.shape, _spec(x)) for x in arguments]
        over = spread(call.axes, known, functools.partial(_devices, mesh))

        def shardings(words: Sequence[str], shapes: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(
                NamedSharding(mesh, PartitionSpec(*partitions(word, shape, over)))
                for word, shape in zip(words, shapes, strict=True)
            )

        of_arguments = shardings(call.axes.operands, [x.shape for x in arguments])
        of_results = shardings(call.axes.results, [shape for shape, _ in call.results])
        one = _on_one_device(call, over, of_results)
        return mesh, one, list(of_results), of_arguments

    def propagate(mesh: Any, arguments: Any, results: Any) -> Any:
        return partition(mesh, arguments, results)[2]

    shapes = [x for x, _ in call.results]

    def rule(mesh: Any, operand_types: Any, result_types: Any) -> Any:
        given = [tuple(t.shape) for t in operand_types]
        found = sharding_rule(call.axes, (given, shapes), tuple(mesh.shape.values()))
        return found.pop("sharding_rule"), found

    function.def_partition(partition, propagate, sharding_rule=rule)
    return function


def _spec(argument: Any) -> Sequence[Any]:
    spec = getattr(argument.sharding, "spec", ())
    return (*spec, *[None] * (len(argument.shape) - len(spec)))


def _on_one_device(call: Call, over: dict[str, Any], shardings: Sequence[Any]) -> Any:
    """Return what each device computes: its part, and sums over those that share a result."""
    local = tuple(
        (tuple(sharding.shard_shape(shape)), dtype)
        for sharding, (shape, dtype) in zip(shardings, call.results, strict=True)
    )

    def function(*operands: Any) -> Any:
        given = list(operands)
        if call.draws is not None:
            given[call.draws] = _moved(call, over, operands)
        found = run(call._replace(results=local), given)
        return [
            _summed(x, over, sharding.spec) for x, sharding in zip(found, shardings, strict=True)
        ]

    return function


def _summed(x: Any, over: dict[str, Any], spec: Sequence[Any]) -> Any:
    """Sum a result over the devices that computed parts of it."""
    names = [name for part in over.values() for name in _names(part)]
    own = {name for part in spec for name in _names(part)}
    shared = tuple(dict.fromkeys(name for name in names if name not in own))
    return jax.lax.psum(x, shared) if shared else x


def _names(part: Any) -> tuple[str, ...]:
    if part is None:
        return ()
    return part if isinstance(part, tuple) else (part,)


def _moved(call: Call, over: dict[str, Any], operands: Sequence[Any]) -> Any:
    """Return dropout's seed with the first sequence and head of this device."""
    seed = operands[call.draws or 0]
    word = call.axes.operands[0]
    shape = operands[0].shape[operands[0].ndim - len(word) :]
    first = [
        jax.lax.axis_index(_names(over[name])) * shape[word.index(name)] if name in over else 0
        for name in "nh"
    ]
    return seed.at[..., 2:].add(jnp.stack([jnp.asarray(x, jnp.uint32) for x in first]))


call_p = Primitive("multihead_call")
call_p.multiple_results = True
call_p.def_impl(_run)
call_p.def_abstract_eval(_types)
mlir.register_lowering(call_p, _lower, platform="cpu")
batching.primitive_batchers[call_p] = _batch
