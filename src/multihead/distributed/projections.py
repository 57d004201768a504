"""The projections of a layer in NumPy: forward, and their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from multihead.arrays import Array
from multihead.layouts import Sizes

Three: TypeAlias = tuple[Array, Array, Array]
Parameters: TypeAlias = Mapping[str, Array]


def widths(sizes: Sizes) -> tuple[int, int, int]:
    """Return the features of all heads of queries, keys and values side by side."""
    return sizes.queries, sizes.keys, sizes.keys


def project(params: Parameters, sizes: Sizes, inputs: Three) -> Three:
    """Multiply query, key and value, (..., width), by their weights, and add their biases.

    What is one object is read once, where the weights are one array too.
    """
    query, key, value = inputs
    bias = params.get("in_proj_bias")
    if query is key is value and "in_proj_weight" in params:
        all_three = _linear(query, params["in_proj_weight"], bias)
        q, k, v = np.split(all_three, 3, axis=-1)
        return q, k, v
    weights, ends = _weights(params, sizes), np.cumsum(widths(sizes))[:2]
    biases = [None] * 3 if bias is None else np.split(bias, ends)
    q, k, v = (_linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
    return q, k, v


def project_backward(
    params: Parameters, sizes: Sizes, inputs: Three, gradients: Three, grads: Parameters
) -> Three:
    """Return the gradients of query, key and value; write those of the weights to `grads`."""
    of_weights, ends = _weights(grads, sizes), np.cumsum(widths(sizes))[:2]
    for x, d, to in zip(inputs, gradients, of_weights, strict=True):
        _weight_gradient(x, d, to)
    if "in_proj_bias" in grads:
        for d, to in zip(gradients, np.split(grads["in_proj_bias"], ends), strict=True):
            _bias_gradient(d, to)
    weights = _weights(params, sizes)
    q, k, v = (np.matmul(d, w) for d, w in zip(gradients, weights, strict=True))
    return q, k, v


def project_out(params: Parameters, merged: Array) -> Array:
    """Multiply the heads side by side, (..., H * D), by the output's weight, and add its bias."""
    return _linear(merged, params["out_proj.weight"], params.get("out_proj.bias"))


def project_out_backward(
    params: Parameters, merged: Array, d_out: Array, grads: Parameters
) -> Array:
    """Return the gradient of `merged`; write those of weight and bias to `grads`."""
    _weight_gradient(merged, d_out, grads["out_proj.weight"])
    if "out_proj.bias" in grads:
        _bias_gradient(d_out, grads["out_proj.bias"])
    d_merged: Array = np.matmul(d_out, params["out_proj.weight"])
    return d_merged


def _weights(params: Parameters, sizes: Sizes) -> list[Array]:
    """View the weights of queries, keys and values."""
    if "in_proj_weight" in params:
        return np.split(params["in_proj_weight"], np.cumsum(widths(sizes))[:2])
    return [params[f"{x}_proj_weight"] for x in "qkv"]


def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    found: Array = np.matmul(_rows(x), weight.T)
    if bias is not None:
        found += bias
    return found.reshape(*x.shape[:-1], len(weight))


def _weight_gradient(x: Array, d: Array, to: Array) -> None:
    np.matmul(_rows(d).T, _rows(x), out=to)


def _bias_gradient(d: Array, to: Array) -> None:
    to[...] = _rows(d).sum(axis=0, dtype=np.float64)


def _rows(x: Array) -> Array:
    """Put all tokens into one axis."""
    return x.reshape(-1, x.shape[-1])
