"""scaled_dot_product_attention: torch's function, and its backward."""

from __future__ import annotations

import inspect
import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch

from magnitudes import attention_magnitudes
from multihead import reference
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from tolerance import FORWARD, GRADIENT, TORCH, assert_all_close, assert_close, tolerance

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = ("float32", "float64")
MASK_SHAPES = [(5, 7), (1, 7), (5, 1), (2, 1, 1, 7), (3, 5, 7), (1, 3, 5, 7), (2, 3, 5, 7)]


def tensors(
    rng: np.random.Generator,
    dtype: str,
    lead: tuple[int, ...] = (2, 3),
    length: int = 5,
    s: int = 7,
    d: int = 6,
    dv: int | None = None,
) -> tuple[np.ndarray, ...]:
    """Random q, k, v and d_out."""
    dv = d if dv is None else dv
    sizes = ((length, d), (s, d), (s, dv), (length, dv))
    return tuple(rng.standard_normal((*lead, *size)).astype(dtype) for size in sizes)


def step(q: Any, k: Any, v: Any, d_out: Any, **options: Any) -> dict[str, np.ndarray]:
    """Output and gradients by name."""
    out, cache = scaled_dot_product_attention(q, k, v, **options, return_cache=True)
    grads = scaled_dot_product_attention_backward(d_out, cache)
    return {"out": out} | dict(zip(("q", "k", "v"), grads[:3], strict=True))


def torch_step(q: Any, k: Any, v: Any, d_out: Any, **options: Any) -> dict[str, np.ndarray]:
    leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in (q, k, v)]
    if options.get("attn_mask") is not None:
        options["attn_mask"] = torch.from_numpy(options["attn_mask"])
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, **options)
    out.backward(torch.from_numpy(d_out))
    found = {"out": out.detach().numpy()}
    return found | {name: x.grad.numpy() for name, x in zip("qkv", leaves, strict=True)}


def oracle_step(
    q: Any, k: Any, v: Any, d_out: Any, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Output and gradients by name, and the sizes of `magnitudes`."""
    result = reference.attention(q, k, v, **options)
    grads = reference.attention_backward(result, d_out)
    found = {"out": result.out} | dict(zip("qkv", grads[:3], strict=True))
    return found, attention_magnitudes(result, d_out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("dv", [6, 9])
def test_agrees_with_torch(
    dv: int, scale: float | None, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    for shape in MASK_SHAPES if kind in ("bool", "float") else [()]:
        arguments = tensors(rng, dtype, dv=dv)
        options: dict[str, Any] = {"scale": scale, "is_causal": kind == "causal"}
        if kind == "bool":
            options["attn_mask"] = rng.random(shape) < 0.6
            options["attn_mask"][..., 0] = True
        if kind == "float":
            options["attn_mask"] = rng.standard_normal(shape).astype(dtype)
        expected = torch_step(*arguments, **options)
        assert_all_close(step(*arguments, **options), expected, tolerance(TORCH, dtype), shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3), (0, 2), (2, 0)])
def test_any_leading_axes(lead: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    arguments = tensors(rng, dtype, lead)
    actual = step(*arguments)
    flat = tuple(x.reshape(-1, 1, *x.shape[-2:]) for x in arguments)
    expected, _ = oracle_step(*flat)
    for name, x in zip(("out", "q", "k", "v"), (arguments[3], *arguments[:3]), strict=True):
        assert_close(
            actual[name], expected[name].reshape(x.shape), tolerance(GRADIENT, dtype), name
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "s", "d", "dv"),
    [
        (1, 1, 1, 1),
        (1, 300, 64, 64),
        (67, 1, 3, 5),
        (130, 65, 33, 70),
        (65, 257, 128, 16),
        (3, 0, 4, 4),
        (0, 3, 4, 4),
    ],
)
def test_agrees_with_the_oracle(
    length: int, s: int, d: int, dv: int, dtype: str, rng: np.random.Generator
) -> None:
    arguments = tensors(rng, dtype, (2, 2), length, s, d, dv)
    for causal, kind, dropout in itertools.product(
        (False, True), ("none", "bool", "float"), (0.0, 0.3)
    ):
        options: dict[str, Any] = {"is_causal": causal}
        oracle = dict(options)
        if kind == "bool":
            sees = rng.random((2, 1, length, s)) < 0.7
            options["attn_mask"], oracle["attn_mask"] = sees, ~sees
        if kind == "float":
            mask = np.where(
                rng.random((length, s)) < 0.3, -np.inf, rng.standard_normal((length, s))
            )
            options["attn_mask"] = oracle["attn_mask"] = mask.astype(dtype)
        if dropout:
            options |= {"dropout_p": dropout, "seed": 11}
            oracle |= {"dropout": dropout, "seed": 11}
        note = (causal, kind, dropout)
        actual = step(*arguments, **options)
        expected, sizes = oracle_step(*arguments, **oracle)
        out, reference_out = actual.pop("out"), expected.pop("out")
        assert_close(out, reference_out, tolerance(FORWARD, dtype), f"out {note}")
        assert_all_close(actual, expected, tolerance(GRADIENT, dtype), note, sizes=sizes)


@pytest.mark.usefixtures("threads")  # one of which takes all groups of a head's keys
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_groups_of_keys_agree_with_the_oracle(
    causal: bool, dtype: str, rng: np.random.Generator
) -> None:
    q, k, v, d_out = tensors(rng, dtype, (1, 4), 140, 1100, 8, 5)
    options: dict[str, Any] = {"is_causal": causal, "query_offset": 1100 - 140}
    actual = step(q, k[:, :2], v[:, :2], d_out, enable_gqa=True, **options)
    rules = {"is_causal": causal, "offsets": (0, 0, 1100 - 140, 0)}
    expected, sizes = oracle_step(q, k[:, :2], v[:, :2], d_out, **rules)
    out, reference_out = actual.pop("out"), expected.pop("out")  # values of about 1, averaged
    assert_close(out, reference_out, tolerance(FORWARD, dtype), "out", scale=1.0)
    assert_all_close(actual, expected, tolerance(GRADIENT, dtype), sizes=sizes)


def test_true_means_attend(rng: np.random.Generator) -> None:
    q, k, v, _ = tensors(rng, "float64")
    sees = np.zeros((5, 7), bool)
    sees[:, 2] = True
    out = scaled_dot_product_attention(q, k, v, sees)
    np.testing.assert_allclose(out, np.broadcast_to(v[:, :, 2:3], out.shape), rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lse_is_the_natural_logarithm(dtype: str, rng: np.random.Generator) -> None:
    q, k, v, _ = tensors(rng, dtype, length=20, s=70)
    sees = rng.random((20, 70)) < 0.5
    sees[4] = False
    out, lse = scaled_dot_product_attention(q, k, v, sees, return_lse=True)
    expected = reference.attention(q, k, v, ~sees)
    assert_close(out, expected.out, tolerance(FORWARD, dtype), "out")
    assert_close(lse, expected.lse, tolerance(FORWARD, dtype), "lse")
    assert (lse[:, :, 4] == -np.inf).all()
    assert not out[:, :, 4].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("sign", [-1, 1])
def test_lse_where_masks_are_near_the_limits(
    sign: int, is_causal: bool, dtype: str, rng: np.random.Generator
) -> None:
    q, k, v, _ = tensors(rng, dtype, length=9, s=67)
    limit = np.finfo(dtype).max
    for share in (0.6, 0.69, 0.7, 0.9, 1.0):
        mask = np.where(rng.random((2, 1, 9, 67)) < 0.3, -np.inf, sign * share * limit)
        mask[..., 0], mask[:, :, 4], mask[:, :, 5] = sign * share * limit, -np.inf, 0
        mask = mask.astype(dtype)
        options = {"is_causal": is_causal}
        out, lse = scaled_dot_product_attention(q, k, v, mask, return_lse=True, **options)
        expected = reference.attention(q, k, v, mask, **options)
        for row in range(9):
            bound = tolerance(FORWARD, dtype)
            assert_close(lse[:, :, row], expected.lse[:, :, row], bound, f"lse {share}, {row}")
        assert_close(out, expected.out, tolerance(FORWARD, dtype), f"out {share}")


def test_lse_where_unlike_masks_are_beyond_the_limit_in_log2_units(
    rng: np.random.Generator,
) -> None:
    q, k, v, _ = tensors(rng, "float32", length=3, s=5)
    mask = np.array([-3e38, -2.5e38, -3.2e38, -3.3e38, -2.6e38], np.float32)
    mask = np.stack([mask, -mask, np.zeros(5, np.float32)])
    _, lse = scaled_dot_product_attention(q, k, v, mask, return_lse=True)
    expected = reference.attention(q, k, v, mask).lse
    for row in range(3):
        assert_close(lse[:, :, row], expected[:, :, row], tolerance(FORWARD, "float32"), str(row))


def test_lse_and_cache_together(rng: np.random.Generator) -> None:
    q, k, v, d_out = tensors(rng, "float64")
    out, lse, cache = scaled_dot_product_attention(q, k, v, return_lse=True, return_cache=True)
    assert out.shape == d_out.shape
    assert lse.shape == (2, 3, 5)
    first = scaled_dot_product_attention_backward(d_out, cache)
    second = scaled_dot_product_attention_backward(d_out, cache)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_without_a_seed_differs_from_call_to_call(rng: np.random.Generator) -> None:
    q, k, v, _ = tensors(rng, "float64", length=30, s=30)
    one, two = (scaled_dot_product_attention(q, k, v, dropout_p=0.5) for _ in range(2))
    assert (one != two).any()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"key": np.zeros((2, 3, 7, 5))}, "key"),
        ({"value": np.zeros((2, 3, 6, 6))}, "value"),
        ({"key": np.zeros((2, 2, 7, 6))}, "key"),
        ({"query": np.zeros(6)}, "query"),
        ({"value": np.zeros((2, 3, 7, 6), np.float32)}, "value"),
        ({"query": np.zeros((2, 3, 5, 6), int)}, "query"),
        ({"attn_mask": np.zeros((4, 7))}, "attn_mask"),
        ({"attn_mask": np.zeros((5, 7), int)}, "attn_mask"),
        ({"dropout_p": 1.5}, "dropout_p"),
        ({"dropout_p": -0.1}, "dropout_p"),
        ({"dropout_p": "0.1"}, "dropout_p"),
        ({"scale": "0.1"}, "scale"),
        ({"scale": True}, "scale"),
        ({"is_causal": "no"}, "is_causal"),
        ({"return_lse": "no"}, "return_lse"),
        ({"return_cache": 2}, "return_cache"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    q, k, v, _ = tensors(rng, "float64")
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=f"^{name}: expected"):
        scaled_dot_product_attention(**({"query": q, "key": k, "value": v} | change))


@pytest.mark.parametrize(
    ("mask", "way"),
    [
        (np.zeros((2, 5, 7)), "(attn_mask[..., None, :, :] fits)"),
        (np.zeros((5, 7), int), "(True means attend here: attn_mask != 0 if 1 means keep)"),
    ],
)
def test_a_mask_that_does_not_fit_is_told_how(
    mask: np.ndarray, way: str, rng: np.random.Generator
) -> None:
    q, k, v, _ = tensors(rng, "float64")
    with pytest.raises((ValueError, TypeError), match=re.escape(way)):
        scaled_dot_product_attention(q, k, v, mask)


def test_names_and_order_are_those_of_torch(rng: np.random.Generator) -> None:
    # the documented signature; the function is a builtin without one
    doc = torch.nn.functional.scaled_dot_product_attention.__doc__ or ""
    theirs = re.sub(r"=[^,)]*", "", doc[doc.index("(") + 1 : doc.index(")")])
    ours = inspect.signature(scaled_dot_product_attention).parameters.values()
    positional = [x.name for x in ours if x.kind is x.POSITIONAL_OR_KEYWORD]
    assert positional == re.split(r",\s*", theirs)
    q, k, v, _ = tensors(rng, "float64")
    options = {"query": q, "key": k, "value": v, "scale": 0.2, "enable_gqa": False}
    tensor_options = {
        n: torch.from_numpy(x) if n in ("query", "key", "value") else x for n, x in options.items()
    }
    expected = torch.nn.functional.scaled_dot_product_attention(**tensor_options).numpy()
    assert_close(scaled_dot_product_attention(**options), expected, tolerance(TORCH, "float64"))


@pytest.mark.parametrize(
    ("given", "suggested"),
    [("mask", "attn_mask"), ("causal", "is_causal"), ("dropout", "dropout_p")],
)
def test_an_argument_of_another_name_is_suggested(given: str, suggested: str) -> None:
    q = np.ones((2, 3))
    with pytest.raises(TypeError, match=rf"argument '{given}'; did you mean '{suggested}'\?$"):
        scaled_dot_product_attention(q, q, q, **{given: None})


def test_d_out_of_another_shape_is_named(rng: np.random.Generator) -> None:
    q, k, v, d_out = tensors(rng, "float64")
    _, cache = scaled_dot_product_attention(q, k, v, return_cache=True)
    with pytest.raises(ValueError, match="d_out"):
        scaled_dot_product_attention_backward(d_out[:, :, 1:], cache)
