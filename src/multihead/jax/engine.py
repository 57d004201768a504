"""The engine's functions as calls of XLA: `multihead_attention_forward` and so on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from multihead.jax.axes import Axes
from multihead.jax.call import Options, Tensors, computed_in
from multihead.jax.calls import Call, Result, run

# bits of the attribute `given`: csrc/xla/attention.cpp
_GIVEN = {
    "mask": 1,
    "alibi_slopes": 2,
    "sinks": 4,
    "query_positions": 8,
    "key_lengths": 16,
    "seed": 32,
}
_AXES = {
    "query": "nlhd",
    "key": "nsgd",
    "value": "nsge",
    "mask": "nhls",
    "alibi_slopes": "nh",
    "sinks": "h",
    "query_positions": "n",
    "key_lengths": "n",
    "seed": "w",
}
_LSE_GRADIENT = 64
_GRADIENTS = {"mask": 128, "sinks": 256}


def forward(tensors: Tensors, options: Options, keep: bool) -> tuple[Any, Any]:
    """Attend; with `keep` also for backward.

    Parameters
    ----------
    tensors : Tensors
    options : Options
    keep : bool
        Return `out` in what is computed in, and statistics (N, 2, H, L) of the rows.

    Returns
    -------
    out : array (N, L, H, Dv)
    stats : array or None
    """
    q, v = tensors.query, tensors.value
    compute = computed_in(q.dtype)
    n, length, heads, _ = q.shape
    of_out = (n, length, heads, v.shape[3]), compute if keep else q.dtype
    results = [("nlhe", of_out)]
    if keep:
        results.append(("nxhl", ((n, 2, heads, length), compute)))
    out, *stats = _call("multihead_attention_forward", results, (tensors, options))
    return out, stats[0] if keep else None


def backward(
    tensors: Tensors,
    options: Options,
    wanted: Sequence[str],
    kept: tuple[Any, Any],
    cotangents: Sequence[Any],
) -> list[Any]:
    """Return the gradients of the wanted tensors.

    Parameters
    ----------
    tensors : Tensors
    options : Options
    wanted : sequence of str
    kept : tuple of array
        What `forward` with ``keep`` returned: out and stats.
    cotangents : sequence of array
        Of out, and perhaps of the rows' logarithms (N, H, L).
    """
    q = tensors.query
    n, length, heads, _ = q.shape
    compute = computed_in(q.dtype)
    found = ["query", "key", "value", *(name for name in _GRADIENTS if name in wanted)]
    results = [(_AXES[name], _like(getattr(tensors, name))) for name in found]
    results.append(("nhl", ((n, heads, length), compute)))  # the engine's own, between passes
    given = sum(_GRADIENTS.get(name, 0) for name in wanted)
    if len(cotangents) > 1:
        given += _LSE_GRADIENT
    out, stats = kept
    more = list(zip(("nxhl", "nlhe", "nlhe", "nhl"), (stats, out, *cotangents), strict=False))
    gradients = _call("multihead_attention_backward", results, (tensors, options), more, given)
    by_name = dict(zip(found, gradients, strict=False))
    return [by_name[name] for name in wanted]


def _like(x: Any) -> Result:
    return x.shape, x.dtype


def _call(
    target: str,
    results: Sequence[tuple[str, Result]],
    arguments: tuple[Tensors, Options],
    more: Sequence[tuple[str, Any]] = (),
    given: int = 0,
) -> list[Any]:
    tensors, options = arguments
    if tensors.seed is not None:  # and where a device's part begins
        none = jnp.zeros(2, jnp.uint32)
        tensors = tensors._replace(seed=jnp.concatenate([tensors.seed, none]))
    present = [(_AXES[name], x) for name, x in tensors._asdict().items() if x is not None]
    given += sum(bit for name, bit in _GIVEN.items() if getattr(tensors, name) is not None)
    attributes = (
        ("broadcast_dropout", options.broadcast_dropout),
        ("causal", options.causal),
        ("dropout_p", np.float64(options.dropout_p)),
        ("given", np.int64(given)),
        ("scale", np.float64(options.scale)),
        ("softcap", np.float64(options.softcap)),
        ("window_left", np.int64(options.window_left)),
        ("window_right", np.int64(options.window_right)),
    )
    words, operands = zip(*present, *more, strict=True)
    axes = Axes(words, tuple(word for word, _ in results))
    draws = None if tensors.seed is None else len(present) - 1
    call = Call(target, attributes, axes, tuple(result for _, result in results), draws)
    return run(call, operands)
