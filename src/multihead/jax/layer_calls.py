"""The engine's layer as calls of XLA: `multihead_layer_forward` and `multihead_layer_backward`."""

from __future__ import annotations

import ctypes
import string
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from multihead.arguments import LayerTensors
from multihead.checks import wrong
from multihead.jax.axes import Axes
from multihead.jax.calls import Call, Result, result_types, run
from multihead.jax.layer_form import LayerForm, shape_of
from multihead.jax.requires import LIBRARY
from multihead.jax.symbolic import check_lengths

_WEIGHTS = {None: 0, True: 1, False: 2}  # faces::Weights
_DTYPES = {"float32": 1, "float64": 2, "float16": 3, "bfloat16": 4}  # DType
# Sequences alone may be spread over devices: "n". What has other names is on all of them.
_AXES = {"key": "nsi", "value": "nsj", "padding": "ns", "mask": "nxls"}
_CACHE = "ny"


class _Sizes(ctypes.Structure):
    """`LayerSizes` of csrc/xla/layer_cache.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("dtype", "queries", "keys", "heads", "key_heads", "head_dim"),
            *("bias_key", "zero_row"),
        )
    ]


LIBRARY.multihead_layer_cache_bytes.argtypes = [ctypes.POINTER(_Sizes)]
LIBRARY.multihead_layer_cache_bytes.restype = ctypes.c_int64


def cache_bytes(form: LayerForm, operands: Sequence[Any]) -> int:
    """Return how much forward leaves of each sequence for backward."""
    o, (_, queries, keys, _) = form.options, shape_of(form, operands)
    check_lengths(queries, keys, "derivatives of the layer")
    heads = o.num_heads, o.key_heads, o.head_dim
    sizes = _Sizes(_DTYPES[o.dtype], queries, keys, *heads, "bias_k" in form.names, o.zero_row)
    size: int = LIBRARY.multihead_layer_cache_bytes(ctypes.byref(sizes))
    if size < 0:
        raise wrong("query", "sizes whose products can be counted", tuple(operands[0].shape))
    return size


def results_of(form: LayerForm, operands: Sequence[Any], cache: int) -> list[Result]:
    """Return what forward's results are: out, weights if any, a cache of so many bytes each."""
    o, (batch, queries, _, columns) = form.options, shape_of(form, operands)
    query = operands[0]
    results = [(query.shape, query.dtype)]
    if o.average is not None:
        heads = () if o.average else (o.num_heads,)
        results.append(((batch, *heads, queries, columns), query.dtype))
    if cache:
        results.append(((batch, cache), jnp.dtype(jnp.uint8)))
    return results


def types_of(form: LayerForm, operands: Sequence[Any], cache: int) -> list[Any]:
    """Return the types of forward's results, from those of the operands."""
    words = [*_of_results(form), _CACHE] if cache else _of_results(form)
    axes = Axes(tuple(_of_operands(form, operands)), tuple(words))
    return result_types(operands, axes, results_of(form, operands, cache))


def types_of_gradients(form: LayerForm, operands: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
    """Return the types of the gradients of some of the operands."""
    words = _of_operands(form, operands)
    axes = Axes(tuple(words), tuple(words[i] for i in wrt))
    return result_types(operands, axes, [(operands[i].shape, operands[i].dtype) for i in wrt])


def forward(form: LayerForm, operands: Sequence[Any], cache: int) -> list[Any]:
    """Run the layer.

    Returns
    -------
    out : array, like query
    weights : array (N, L, S') or (N, H, L, S'), if the call asks for them
    cache : array of uint8 (N, cache), if that is more than 0
    """
    results = results_of(form, operands, cache)
    words = [*_of_results(form), _CACHE] if cache else _of_results(form)
    return _call("multihead_layer_forward", form, (operands, ()), (words, results))


def backward(
    form: LayerForm,
    operands: Sequence[Any],
    cache: Any,
    d_results: Sequence[Any],
    wrt: tuple[int, ...],
) -> list[Any]:
    """Return the gradients of some of the operands.

    Parameters
    ----------
    form : LayerForm
    operands : sequence of array
    cache : array
        What forward left.
    d_results : sequence of array
        Of the output, and of the weights if there is such a gradient.
    wrt : tuple of int
        Indices of operands, ascending.
    """
    words = _of_operands(form, operands)
    sums = _sums(form)
    dtypes = [jnp.dtype("float32") if i in sums else operands[i].dtype for i in wrt]
    results = [(operands[i].shape, dtype) for i, dtype in zip(wrt, dtypes, strict=True)]
    more = [*zip((_CACHE, *_of_results(form)), (cache, *d_results), strict=False)]
    wanted = [form.names[i] for i in wrt]
    to = [words[i] for i in wrt], results
    found = _call("multihead_layer_backward", form, (operands, more), to, wanted)
    return [x.astype(operands[i].dtype) for i, x in zip(wrt, found, strict=True)]


def _sums(form: LayerForm) -> set[int]:
    """Return which inputs of half precision serve twice, so that their sum is rounded once.

    The engine does so itself where one pass writes all three.
    """
    if form.options.dtype not in ("float16", "bfloat16"):
        return set()
    names = form.names
    if "key" in names:
        return set() if "value" in names else {names.index("key")}
    apart = "padding" in names or "bias_k" in names or form.options.zero_row
    return {0} if "value" in names or apart else set()


def _of_operands(form: LayerForm, operands: Sequence[Any]) -> list[str]:
    """Name the axes of the operands; those of parameters are all different."""
    letters = iter(string.ascii_uppercase)
    words = []
    for name, x in zip(form.names, operands, strict=False):
        if name == "query":
            word = "nle"
        else:
            word = _AXES.get(name) or "".join(next(letters) for _ in range(x.ndim))
        if form.options.tokens_first and name in ("query", "key", "value"):
            word = word[1] + word[0] + word[2]
        words.append(word)
    return [*words, "w"] if form.drops else words


def _of_results(form: LayerForm) -> list[str]:
    words = ["lne" if form.options.tokens_first else "nle"]
    if form.options.average is not None:
        words.append("nlc" if form.options.average else "nxlc")
    return words


def _call(
    target: str,
    form: LayerForm,
    given: tuple[Sequence[Any], Sequence[tuple[str, Any]]],
    results: tuple[Sequence[str], Sequence[Result]],
    wanted: Sequence[str] = (),
) -> list[Any]:
    operands, more = list(given[0]), given[1]
    draws = None
    if form.drops:  # and where a device's part begins
        draws = len(operands) - 1
        operands[draws] = jnp.concatenate([operands[draws], jnp.zeros(2, jnp.uint32)])
    words = [*_of_operands(form, operands), *(word for word, _ in more)]
    axes = Axes(tuple(words), tuple(results[0]))
    attributes = tuple(sorted((_attributes(form) | {"wanted": np.int64(_bits(wanted))}).items()))
    call = Call(target, attributes, axes, tuple(results[1]), draws)
    return run(call, [*operands, *(x for _, x in more)])


def _bits(names: Sequence[str]) -> int:
    """Return which fields these are, as kLayerTensors counts them."""
    return sum(1 << i for i, name in enumerate(LayerTensors._fields) if name in names)


def _attributes(form: LayerForm) -> dict[str, Any]:
    o = form.options
    return {
        "causal": o.causal,
        "dropout_p": np.float64(o.dropout_p),
        "given": np.int64(_bits(form.names)),
        "head_dim": np.int64(o.head_dim),
        "interleaved": o.interleaved,
        "kernels": form.kernels,
        "key_heads": np.int64(o.key_heads),
        "num_heads": np.int64(o.num_heads),
        "softcap": np.float64(o.softcap),
        "tokens_first": o.tokens_first,
        "weights": np.int64(_WEIGHTS[o.average]),
        "window_left": np.int64(o.window_left),
        "window_right": np.int64(o.window_right),
        "zero_row": o.zero_row,
    }
