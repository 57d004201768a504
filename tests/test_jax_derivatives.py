"""Derivatives of attention in JAX, of every mode and order, beside those of composed operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tolerance import CENTRAL_DIFFERENCES, assert_close

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from jax_calls import KEY, drawn  # noqa: E402
from multihead.jax import dot_product_attention  # noqa: E402

SIZES = (2, 5, 7, 4, 2, 3, 2)  # N, L, S, H, Hk, D, Dv
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": "end"},
    "window": {"window": (2, 1), "softcap": 1.5},
    "lengths": {"key_lengths": np.array([7, 4]), "alibi_slopes": np.array([0.1, 0.2, 0.3, 0.4])},
    "dropout": {"dropout_p": 0.3, "dropout_key": KEY, "query_offset": np.array([-2, 3])},
}
BOUND = 1e-9  # of float64: sums in other orders
Loss = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def float64() -> Any:
    with jax.enable_x64(True):
        yield


def problem(options: dict[str, Any]) -> tuple[Loss, Loss, dict[str, Any]]:
    """A loss of attention that is ours, the same composed, and its smooth inputs."""
    rng = np.random.default_rng(31)
    inputs = drawn(rng, SIZES, np.float64)
    smooth = dict(zip(("query", "key", "value"), inputs, strict=True))
    smooth |= {"bias": rng.standard_normal((2, 1, 5, 7)), "sinks": rng.standard_normal(4)}
    weights = rng.standard_normal((2, 5, 4, 2)), rng.standard_normal((2, 4, 5))

    def of(function: Callable[..., Any]) -> Loss:
        def loss(given: dict[str, Any]) -> Any:
            out, lse = function(**given, **options, return_lse=True)
            return (jnp.sin(out) * weights[0]).sum() + (jnp.sin(lse) * weights[1]).sum()

        return loss

    return of(dot_product_attention), of(plainly), smooth


def plainly(
    query: Any, key: Any, value: Any, bias: Any, sinks: Any, **options: Any
) -> tuple[Any, Any]:
    """Attention as its definition says, in JAX's operations."""
    length, s = query.shape[1], key.shape[1]
    key, value = (jnp.repeat(x, 2, 2) for x in (key, value))
    scores = jnp.einsum("nlhd,nshd->nhls", query, key) / np.sqrt(query.shape[3])
    if "softcap" in options:
        scores = options["softcap"] * jnp.tanh(scores / options["softcap"])
    offset = options.get("query_offset", 0)
    first = np.broadcast_to(s - length if isinstance(offset, str) else offset, 2)
    steps = np.arange(s) - np.arange(length)[:, None] - first[:, None, None, None]
    slopes = options.get("alibi_slopes", np.zeros(4))[:, None, None]
    before, after = options.get("window", (s + 9, s + 9))
    seen = (steps >= -before) & (steps <= (0 if "is_causal" in options else after))
    lengths = options.get("key_lengths", np.array([s, s]))[:, None, None, None]
    seen = np.broadcast_to(seen & (np.arange(s) < lengths), (2, 4, length, s))
    assert seen.any(-1).all()
    scores = scores - slopes * abs(steps) + bias
    sink = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1))
    terms = jnp.exp(jnp.concatenate([jnp.where(seen, scores, -np.inf), sink], -1))
    weights = terms[..., :-1] / terms.sum(-1, keepdims=True)
    if "dropout_p" in options:
        weights = weights * jnp.asarray(kept(weights.shape, options["dropout_p"]))
    return jnp.einsum("nhls,nshd->nlhd", weights, value), jnp.log(terms.sum(-1))


def kept(shape: tuple[int, ...], p: float) -> Any:
    from multihead.reference.dropout import dropout_mask

    keep, factor = dropout_mask(5 << 32 | 7, 0, *map(range, shape), p)
    return keep * factor


@pytest.fixture(params=OPTIONS)
def losses(request: Any) -> tuple[Loss, Loss, dict[str, Any]]:
    return problem(OPTIONS[request.param])


def compare(found: Any, expected: Any) -> None:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for i, (a, b) in enumerate(pairs):
        assert_close(a, b, BOUND, f"leaf {i}", scale=1.0)


def test_value_and_gradient(losses: Any) -> None:
    ours, plain, smooth = losses
    compare(jax.jit(jax.value_and_grad(ours))(smooth), jax.jit(jax.value_and_grad(plain))(smooth))
    compare(jax.grad(ours)(smooth), jax.jit(jax.grad(plain))(smooth))


def test_gradients_by_differences() -> None:
    ours, _, smooth = problem({})
    gradients = jax.grad(ours)(smooth)
    loss, step = jax.jit(ours), 1e-5
    for name, x in smooth.items():
        at = tuple(size // 2 for size in x.shape)
        moved = [x.copy(), x.copy()]
        for y, by in zip(moved, (step, -step), strict=True):
            y[at] += by
        high, low = (loss(smooth | {name: y}) for y in moved)
        assert_close(
            gradients[name][at], (high - low) / (2 * step), CENTRAL_DIFFERENCES, name, scale=1.0
        )


def test_forward_mode(losses: Any) -> None:
    ours, plain, smooth = losses
    rng = np.random.default_rng(32)
    changes = {name: rng.standard_normal(x.shape) for name, x in smooth.items()}
    moved, of_plain = (jax.jit(lambda *x, f=f: jax.jvp(f, *x)) for f in (ours, plain))
    compare(moved((smooth,), (changes,)), of_plain((smooth,), (changes,)))
    only = {name: x if name == "key" else np.zeros_like(x) for name, x in changes.items()}
    compare(jax.jvp(ours, (smooth,), (only,)), of_plain((smooth,), (only,)))


ORDERS = ["fwd rev", "rev fwd", "rev rev", "fwd fwd"]


@pytest.mark.parametrize("order", ORDERS)
def test_second_derivatives(order: str) -> None:
    ours, plain, smooth = problem(OPTIONS["causal"])
    outer, inner = (getattr(jax, f"jac{mode}") for mode in order.split())

    def of(loss: Loss) -> Any:
        of_two = lambda q, b: loss(smooth | {"query": q, "bias": b})  # noqa: E731
        return jax.jit(outer(inner(of_two, (0, 1)), (0, 1)))(smooth["query"], smooth["bias"])

    compare(of(ours), of(plain))


def test_gradient_of_a_gradient(losses: Any) -> None:
    ours, plain, smooth = losses

    def penalty(loss: Loss) -> Loss:
        return lambda given: sum((x**2).sum() for x in jax.tree.leaves(jax.grad(loss)(given)))

    compare(jax.jit(jax.grad(penalty(ours)))(smooth), jax.jit(jax.grad(penalty(plain)))(smooth))


def test_third_derivatives() -> None:
    ours, plain, smooth = problem(OPTIONS["window"])

    def along(loss: Loss) -> Any:
        def at(t: Any) -> Any:
            return loss(smooth | {"query": smooth["query"] * t, "value": smooth["value"] * t})

        return jax.grad(jax.grad(jax.grad(at)))(1.25)

    compare(jax.jit(lambda: along(ours))(), jax.jit(lambda: along(plain))())


def test_hessian_vector_products() -> None:
    ours, plain, smooth = problem(OPTIONS["lengths"])
    rng = np.random.default_rng(33)
    changes = {name: rng.standard_normal(x.shape) for name, x in smooth.items()}

    def product(loss: Loss) -> Any:
        return jax.jvp(jax.grad(loss), (smooth,), (changes,))

    compare(jax.jit(lambda: product(ours))(), jax.jit(lambda: product(plain))())


def test_slopes_have_no_gradient() -> None:
    x = drawn(np.random.default_rng(34), SIZES, np.float64)
    with pytest.raises(ValueError, match=r"alibi_slopes: .*stop_gradient"):
        jax.grad(lambda s: dot_product_attention(*x, alibi_slopes=s).sum())(np.full(4, 0.1))


def test_queries_that_see_nothing_have_no_part() -> None:
    x = drawn(np.random.default_rng(35), SIZES, np.float64)
    some = {"is_causal": True, "query_offset": -3, "sinks": np.ones(4)}

    def loss(q: Any, k: Any) -> Any:
        return (dot_product_attention(q, k, x[2], **some) ** 2).sum()

    out, lse = dot_product_attention(*x, **some, return_lse=True)
    assert (out[:, :3] == 0).all()
    assert np.isneginf(lse[..., :3]).all()
    first = jax.grad(loss)(*x[:2])
    assert (first[:, :3] == 0).all()
    assert float(abs(first[:, 4:]).max()) > 0
    second = jax.jit(jax.jacfwd(jax.grad(lambda k: loss(x[0], k))))(x[1])
    assert np.isfinite(second).all()


def test_forward_mode_reads_no_key_past_its_length() -> None:
    query, key, value = drawn(np.random.default_rng(36), SIZES, np.float64)
    lengths = np.array([7, 4])
    given = query, key.copy(), value.copy()
    for x in given[1:]:
        x[1, 4:] = np.nan

    def attend(*inputs: Any) -> Any:
        return dot_product_attention(*inputs, key_lengths=lengths)

    found, expected = (jax.jvp(attend, x, x) for x in (given, (query, key, value)))
    compare(found, expected)


def test_forward_mode_where_all_is_dropped() -> None:
    # so many weights that some would stay if p were rounded down
    x = jnp.asarray(np.random.default_rng(37).standard_normal((1, 600, 1, 2)))
    out, change = jax.jvp(
        lambda x: dot_product_attention(x, x, x, dropout_p=1.0, dropout_key=KEY), (x,), (x,)
    )
    assert (out == 0).all()
    assert (change == 0).all()
