"""The layer in JAX: two products and its own attention, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from multihead.cli.bench.contenders import Steps
from multihead.cli.bench.problem import Problem


def steps(problem: Problem) -> Steps:
    """Return the compiled function and its backward."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", problem.dtype == "float64")
    exact = "float64" if problem.dtype == "float64" else "float32"
    x, d_out, *params = (jnp.asarray(a, problem.dtype) for a in problem.numpy(exact))
    n, length, e, h = problem.shape

    def layer(x: Any, params: Any) -> Any:
        w_in, b_in, w_out, b_out = params
        q, k, v = jnp.moveaxis((x @ w_in.T + b_in).reshape(n, length, 3, h, -1), 2, 0)
        heads = jax.nn.dot_product_attention(q, k, v).reshape(n, length, e)
        return heads @ w_out.T + b_out

    def both(x: Any, params: Any, d_out: Any) -> Any:
        out, back = jax.vjp(layer, x, params)
        return out, *back(d_out)

    infer, train = jax.jit(layer), jax.jit(both)

    def forward() -> Any:
        return (jax.block_until_ready(infer(x, params)),)

    def training() -> Any:
        return jax.block_until_ready(train(x, params, d_out))

    def read(found: Any) -> list[Any]:
        return [np.asarray(a, np.float64) for a in found[:2]]

    return Steps(forward, training, read)
