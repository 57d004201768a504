"""A layer's parameters in JAX: trees as flax has them, or the names of torch's state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from multihead.arguments import LayerParameters
from multihead.arrays import element_of
from multihead.checks import wrong, wrong_type
from multihead.layouts import Sizes
from multihead.parameters import engine_arrays, parameter_shapes
from multihead.state import SizeOptions, checked_sizes

_PROJECTIONS = ("query", "key", "value", "out")
_MORE = ("bias_k", "bias_v", "sinks")  # what flax has no names for


class Given(NamedTuple):
    """Parameters as the engine takes them.

    Attributes
    ----------
    arrays : LayerParameters
    sizes : Sizes
    dtype : str
    kernels : bool
        Weights are (in, H * D) and (H * D, E): transposes of torch's.
    """

    arrays: LayerParameters
    sizes: Sizes
    dtype: str
    kernels: bool


class Asked(NamedTuple):
    """What a call says of its layer; None: as the parameters say."""

    num_heads: int
    num_kv_heads: int | None
    head_dim: int | None
    add_zero_attn: bool


def read_parameters(params: Any, asked: Asked) -> Given:
    """Check parameters and view them as the engine takes them, or raise.

    Parameters
    ----------
    params : mapping
        ``{"query": {"kernel": (E, H, D), "bias": (H, D)}, "key": ..., "value": ..., "out":
        {"kernel": (H, D, E), "bias": (E,)}}``, or the entries of a state dict.
    asked : Asked
    """
    if not isinstance(params, Mapping):
        raise wrong_type("params", "a mapping of names to arrays", type(params).__name__)
    flax = any(name in params for name in _PROJECTIONS)
    flat = _flat(params) if flax else {name: _array(name, x) for name, x in params.items()}
    sizes = _sizes_of_kernels(flat, asked) if flax else _sizes_of_state(flat, asked)
    expected = _kernel_shapes(sizes, flat) if flax else parameter_shapes(sizes)
    _check_shapes(flat, expected)
    names = sorted({x.dtype.name for x in flat.values()})
    if len(names) > 1:
        raise wrong_type("params", "one dtype in all", ", ".join(names))
    dtype = element_of(names[0], "params").name
    arrays = _of_kernels(flat, sizes) if flax else engine_arrays(flat)
    return Given(arrays, sizes, dtype, flax)


def _array(name: str, x: Any) -> Any:
    if isinstance(x, Mapping):
        raise wrong_type(f"params[{name!r}]", "an array", type(x).__name__)
    return jnp.asarray(x)


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Name a tree's leaves query.kernel and so on."""
    flat = {}
    for name, branch in params.items():
        if not isinstance(branch, Mapping):
            flat[name] = _array(name, branch)
            continue
        for leaf, x in branch.items():
            flat[f"{name}.{leaf}"] = _array(f"{name}.{leaf}", x)
    return flat


def _axes(flat: Mapping[str, Any], name: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a parameter that there must be."""
    if name not in flat:
        raise ValueError(f"params: missing {name}")
    shape: tuple[int, ...] = flat[name].shape
    if len(shape) != rank:
        raise wrong(f"params[{name!r}]", f"{rank} axes", shape)
    return shape


def _sizes_of_kernels(flat: Mapping[str, Any], asked: Asked) -> Sizes:
    embed, heads, width = _axes(flat, "query.kernel", 3)
    kdim, key_heads, _ = _axes(flat, "key.kernel", 3)
    vdim, _, _ = _axes(flat, "value.kernel", 3)
    if asked.num_heads != heads:
        raise wrong("num_heads", f"{heads}, as query.kernel has", asked.num_heads)
    return _checked(
        flat,
        SizeOptions(
            embed_dim=embed,
            num_heads=heads,
            bias=any(f"{name}.bias" in flat for name in _PROJECTIONS),
            kdim=kdim,
            vdim=vdim,
            num_kv_heads=key_heads if asked.num_kv_heads is None else asked.num_kv_heads,
            head_dim=width if asked.head_dim is None else asked.head_dim,
        ),
        asked,
    )


def _sizes_of_state(flat: Mapping[str, Any], asked: Asked) -> Sizes:
    own = SizeOptions(embed_dim=1, num_heads=asked.num_heads, head_dim=1)
    heads = checked_sizes(own).heads
    embed, _ = _axes(flat, "out_proj.weight", 2)
    width, key_heads, kdim, vdim = asked.head_dim, asked.num_kv_heads, embed, embed
    if "in_proj_weight" not in flat:
        rows, _ = _axes(flat, "q_proj_weight", 2)
        key_rows, kdim = _axes(flat, "k_proj_weight", 2)
        _, vdim = _axes(flat, "v_proj_weight", 2)
        width = max(1, rows // heads) if width is None else width
        key_heads = max(1, key_rows // width) if key_heads is None else key_heads
    return _checked(
        flat,
        SizeOptions(
            embed_dim=embed,
            num_heads=heads,
            bias="in_proj_bias" in flat or "out_proj.bias" in flat,
            kdim=kdim,
            vdim=vdim,
            num_kv_heads=key_heads,
            head_dim=width,
        ),
        asked,
    )


def _checked(flat: Mapping[str, Any], own: SizeOptions, asked: Asked) -> Sizes:
    return checked_sizes(
        own._replace(
            add_bias_kv="bias_k" in flat or "bias_v" in flat,
            add_zero_attn=asked.add_zero_attn,
            sinks="sinks" in flat,
        )
    )


def _kernel_shapes(sizes: Sizes, flat: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of flax's parameters."""
    heads, keys = (sizes.heads, sizes.head), (sizes.key_heads, sizes.head)
    shapes: dict[str, tuple[int, ...]] = {}
    each = (("query", sizes.embed, heads), ("key", sizes.kdim, keys), ("value", sizes.vdim, keys))
    for name, width, own in each:
        shapes[f"{name}.kernel"] = (width, *own)
        if sizes.bias:
            shapes[f"{name}.bias"] = own
    shapes["out.kernel"] = (*heads, sizes.embed)
    if sizes.bias:
        shapes["out.bias"] = (sizes.embed,)
    torch = parameter_shapes(sizes)
    shapes.update({name: torch[name] for name in _MORE if name in torch})
    return shapes


def _check_shapes(flat: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing {name}" for name in expected if name not in flat]
    problems += [f"unexpected {name}" for name in flat if name not in expected]
    problems += [
        f"{name}: expected {shape}, got {flat[name].shape}"
        for name, shape in expected.items()
        if name in flat and flat[name].shape != shape
    ]
    if problems:
        raise ValueError(f"params: {'; '.join(problems)}")


def _of_kernels(flat: Mapping[str, Any], sizes: Sizes) -> LayerParameters:
    """Name flax's parameters as the engine does; only their biases are put together."""
    weights = {
        f"{name[0]}_weight": flat[f"{name}.kernel"].reshape(flat[f"{name}.kernel"].shape[0], -1)
        for name in ("query", "key", "value")
    }
    biases: dict[str, Any] = {}
    if sizes.bias:
        own = [flat[f"{name}.bias"].reshape(-1) for name in ("query", "key", "value")]
        biases = {"in_bias": jnp.concatenate(own), "out_bias": flat["out.bias"]}
    more = {name: flat[name] for name in _MORE if name in flat}
    return LayerParameters(
        **weights,
        out_weight=flat["out.kernel"].reshape(sizes.queries, sizes.embed),
        **biases,
        **more,
    )
