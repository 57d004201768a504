"""Bad input: a message that names the argument and the shapes, and nothing changed."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest

import multihead as mh
from cases import Construction, make_layer
from multihead import _native

N, L, S, E, H = 2, 4, 7, 12, 3


def zeros(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.zeros(shape, dtype)


def call(layer: mh.MultiheadAttention, **change: Any) -> Any:
    arguments = {"query": zeros(L, N, E), "key": zeros(S, N, E), "value": zeros(S, N, E)}
    return layer(**(arguments | change))


@pytest.fixture
def layer(rng: np.random.Generator) -> mh.MultiheadAttention:
    """A layer that has run once, sequence first."""
    made = make_layer(Construction(E, H, dropout=0.5, layout="sequence first"), rng)
    call(made)
    return made


class Untouched:
    """Checks on leaving that a layer is as it was on entering."""

    def __init__(self, layer: mh.MultiheadAttention) -> None:
        self.layer = layer

    def state(self) -> tuple[Any, ...]:
        arrays = (*self.layer.parameters().values(), *self.layer.grads.values())
        return self.layer.rng_state, id(self.layer.cache), [x.tobytes() for x in arrays]

    def __enter__(self) -> None:
        self.before = self.state()

    def __exit__(self, *_: object) -> None:
        assert self.state() == self.before


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        ((10, 3), {}, ["embed_dim", "10", "3"]),
        ((0, 1), {}, ["embed_dim"]),
        ((4, 0), {}, ["num_heads"]),
        ((4, 2), {"dropout": 1.5}, ["dropout", "1.5"]),
        ((4, 2), {"dropout": -0.1}, ["dropout", "-0.1"]),
        ((4, 2), {"dropout": float("nan")}, ["dropout", "nan"]),
        ((4, 2), {"dropout": "much"}, ["dropout", "much"]),
        ((4, 2), {"kdim": 0}, ["kdim"]),
        ((4, 2), {"vdim": -2}, ["vdim"]),
        ((4.0, 2), {}, ["embed_dim"]),
        ((4, 2), {"device": "cuda"}, ["device", "cuda"]),
        ((4, 2), {"dtype": np.int32}, ["dtype", "int32"]),
        ((4, 2), {"dtype": np.complex64}, ["dtype", "complex64"]),
        ((4, 2), {"dtype": "float8"}, ["dtype", "float8"]),
        ((4, 2), {"seed": -1}, ["seed", "-1"]),
        ((4, 2), {"seed": 2**64}, ["seed"]),
    ],
)
def test_constructor(arguments: Any, options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        mh.MultiheadAttention(*arguments, **options)
    assert all(word in str(caught.value) for word in named), caught.value


def test_device_cpu_is_fine() -> None:
    for device in (None, "cpu"):
        assert mh.MultiheadAttention(4, 2, device=device).embed_dim == 4


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "query 1-D": ({"query": zeros(E)}, "query: (12,)"),
    "query 4-D": ({"query": zeros(1, L, N, E)}, "query: (1, 4, 2, 12)"),
    "query width": ({"query": zeros(L, N, E - 1)}, "query: 12 (4, 2, 11)"),
    "key width": ({"key": zeros(S, N, 13)}, "key: 12 (7, 2, 13)"),
    "value width": ({"value": zeros(S, N, 13)}, "value: 12 (7, 2, 13)"),
    "key batch": ({"key": zeros(S, 3, E)}, "key: (7, 3, 12)"),
    "value batch": ({"value": zeros(S, 3, E)}, "value: (7, 3, 12)"),
    "value length": ({"value": zeros(6, N, E)}, "value: (7, 2, 12) (6, 2, 12)"),
    "key unbatched": ({"key": zeros(S, E)}, "key: (7, 12)"),
    "value unbatched": ({"value": zeros(S, E)}, "value: (7, 12)"),
    "query a list": ({"query": [[0.0] * E] * L}, "query: list"),
    "query None": ({"query": None}, "query: NoneType"),
    "query integers": ({"query": zeros(L, N, E, dtype=int)}, "query: float64 int64"),
    "query half": (
        {"query": zeros(L, N, E, dtype=np.float16)},
        'query: float64 float16 (query.astype(np.float64), or dtype="float16" for the layer)',
    ),
    "query masked": (
        {"query": np.ma.masked_array(zeros(L, N, E))},
        "query: (query.filled(0) and a mask argument) masked array",
    ),
    "mask masked": (
        {"attn_mask": np.ma.masked_array(zeros(L, S, dtype=bool))},
        "attn_mask: masked array",
    ),
    "query float32": ({"query": zeros(L, N, E, dtype=np.float32)}, "query: float64 float32"),
    "key float32": ({"key": zeros(S, N, E, dtype=np.float32)}, "key: float64 float32"),
    "value complex": ({"value": zeros(S, N, E, dtype=complex)}, "value: float64 complex128"),
    "mask shape": ({"attn_mask": zeros(L, S + 1)}, "attn_mask: (4, 7) (4, 8)"),
    "mask broadcast 2-D": ({"attn_mask": zeros(1, S)}, "attn_mask: (1, 7)"),
    "mask 1-D": ({"attn_mask": zeros(S)}, "attn_mask: (7,)"),
    "mask 3-D": ({"attn_mask": zeros(N, L, S)}, "attn_mask: (6, 4, 7) (2, 4, 7)"),
    "mask 4-D": ({"attn_mask": zeros(N, 2, L, S)}, "attn_mask: (2, 3, 4, 7) (2, 2, 4, 7)"),
    "mask 5-D": ({"attn_mask": zeros(1, N, H, L, S)}, "attn_mask: (1, 2, 3, 4, 7)"),
    "mask 3-D of batch": (
        {"attn_mask": zeros(N, L, S)},
        "attn_mask: (6, 4, 7) (2, 4, 7) (attn_mask[:, None] fits)",
    ),
    "mask 3-D of heads": (
        {"attn_mask": zeros(H, L, S)},
        "attn_mask: (6, 4, 7) (3, 4, 7) (attn_mask[None] fits)",
    ),
    "mask integers": (
        {"attn_mask": zeros(L, S, dtype=int)},
        "attn_mask: bool int64 (True means ignore here: attn_mask == 0 if 1 means keep)",
    ),
    "mask uint8": ({"attn_mask": zeros(L, S, dtype=np.uint8)}, "attn_mask: bool uint8"),
    "mask a list": ({"attn_mask": [[0.0] * S] * L}, "attn_mask: list"),
    "padding shape": ({"key_padding_mask": zeros(N, S + 1)}, "key_padding_mask: (2, 7) (2, 8)"),
    "padding swapped": ({"key_padding_mask": zeros(S, N)}, "key_padding_mask: (2, 7) (7, 2)"),
    "padding 1-D": ({"key_padding_mask": zeros(S)}, "key_padding_mask: (2, 7) (7,)"),
    "padding integers": (
        {"key_padding_mask": zeros(N, S, dtype=int)},
        "key_padding_mask: bool int64 "
        "(True means ignore here: key_padding_mask == 0 if 1 means keep)",
    ),
}


def assert_says(error: BaseException, expected: str) -> None:
    """The message begins with the argument and holds every word after it."""
    name, *words = re.findall(r"\([^)]*\)|\S+", expected)
    assert str(error).startswith(name), error
    assert all(word in str(error) for word in words), error


@pytest.mark.parametrize("case", CALLS)
def test_call(case: str, layer: mh.MultiheadAttention) -> None:
    change, expected = CALLS[case]
    with Untouched(layer), pytest.raises((ValueError, TypeError)) as caught:
        call(layer, **change)
    assert_says(caught.value, expected)


def test_the_first_mistake_of_all() -> None:
    layer = mh.MultiheadAttention(E, H)
    message = (
        "query: expected float32, got float64 "
        '(query.astype(np.float32), or dtype="float64" for the layer)'
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call(layer)
    x = mh.Ragged(zeros(5, E), [0, 2, 5])
    with pytest.raises(
        TypeError, match=r"^query\.values: .*\(query\.values\.astype\(np\.float32\)"
    ):
        layer(x, x, x)


@pytest.mark.parametrize("name", ["in_proj_weight", "out_proj.bias"])
def test_masked_arrays_are_no_parameters(name: str, layer: mh.MultiheadAttention) -> None:
    state = layer.state_dict()
    state[name] = np.ma.masked_array(state[name])
    with Untouched(layer), pytest.raises(TypeError, match=rf"^{name}: .*got a masked array$"):
        layer.load_state_dict(state)


def test_the_message_of_the_design() -> None:
    layer = mh.MultiheadAttention(512, 8)
    x = zeros(5, 4, 512, dtype=np.float32)
    message = "key: expected (S, N, 512) or (S, 512), got (7, 4, 500)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        layer(x, zeros(7, 4, 500, dtype=np.float32), x)


def test_a_tensor_that_requires_grad_is_refused(layer: mh.MultiheadAttention) -> None:
    import torch

    x = torch.zeros(L, N, E, dtype=torch.float64, requires_grad=True)
    with Untouched(layer), pytest.raises((ValueError, TypeError), match=r"query.*detach"):
        call(layer, query=x)


def test_arrays_on_other_devices_are_refused(layer: mh.MultiheadAttention) -> None:
    class Elsewhere:
        shape, dtype = (L, N, E), np.dtype(float)

        def __dlpack__(self, **_: object) -> object:
            raise BufferError("memory of another device")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with Untouched(layer), pytest.raises((ValueError, TypeError), match=r"query.*CPU"):
        call(layer, query=Elsewhere())


BACKWARDS: dict[str, tuple[dict[str, Any], str]] = {
    "d_out shape": ({"d_out": zeros(L, N, E + 1)}, "d_out: (4, 2, 12) (4, 2, 13)"),
    "d_out swapped": ({"d_out": zeros(N, L, E)}, "d_out: (4, 2, 12) (2, 4, 12)"),
    "d_out dtype": ({"d_out": zeros(L, N, E, dtype=np.float32)}, "d_out: float64 float32"),
    "d_out None": ({"d_out": None}, "d_out: NoneType"),
    "d_weights shape": ({"d_weights": zeros(N, H, L, S)}, "d_weights: (2, 4, 7) (2, 3, 4, 7)"),
    "d_weights dtype": ({"d_weights": zeros(N, L, S, dtype=np.float32)}, "d_weights: float32"),
    "cache of another kind": ({"cache": 3}, "cache: int"),
    "out not a tuple": ({"out": zeros(L, N, E)}, "out: tuple"),
    "out of two": ({"out": (zeros(L, N, E), zeros(S, N, E))}, "out: 2"),
    "out shape": (
        {"out": (zeros(L, N, E), zeros(S, N, E), zeros(L, N, E))},
        "out[2]: (7, 2, 12) (4, 2, 12)",
    ),
    "out dtype": (
        {"out": (zeros(L, N, E, dtype=np.float32), zeros(S, N, E), zeros(S, N, E))},
        "out[0]: float64 float32",
    ),
    "out a list": ({"out": ([0.0], zeros(S, N, E), zeros(S, N, E))}, "out[0]: list"),
}


@pytest.mark.parametrize("case", BACKWARDS)
def test_backward(case: str, layer: mh.MultiheadAttention) -> None:
    change, expected = BACKWARDS[case]
    with Untouched(layer), pytest.raises((ValueError, TypeError)) as caught:
        layer.backward(**({"d_out": zeros(L, N, E)} | change))
    assert_says(caught.value, expected)
    layer.backward(zeros(L, N, E))


def test_d_weights_without_weights(layer: mh.MultiheadAttention) -> None:
    call(layer, need_weights=False)
    with Untouched(layer), pytest.raises(ValueError, match="d_weights"):
        layer.backward(zeros(L, N, E), zeros(N, L, S))


def used_up(layer: mh.MultiheadAttention) -> None:
    call(layer)
    layer.backward(zeros(L, N, E))


def in_eval(layer: mh.MultiheadAttention) -> None:
    layer.eval()
    call(layer)


def set_to_none(layer: mh.MultiheadAttention) -> None:
    call(layer)
    layer.cache = None


NO_CACHE: dict[str, tuple[Any, str]] = {
    "no call": (lambda layer: None, "this thread has not called the layer"),
    "used up": (used_up, "backward has used it up; to use one again, keep layer.cache"),
    "eval": (in_eval, "the last call was in eval mode; call layer.train() before it"),
    "set to None": (set_to_none, "layer.cache was set to None"),
}


@pytest.mark.parametrize("case", NO_CACHE)
def test_backward_without_a_cache(case: str, rng: np.random.Generator) -> None:
    prepare, reason = NO_CACHE[case]
    layer = make_layer(Construction(E, H, layout="sequence first"), rng)
    prepare(layer)
    assert layer.cache is None
    message = f"cache: expected one of a call in training mode, got none: {reason}"
    with Untouched(layer), pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        layer.backward(zeros(L, N, E))


def test_backward_with_the_cache_of_another_layer(layer: mh.MultiheadAttention) -> None:
    other = copy.copy(layer)
    call(other)
    message = "cache: expected one that a call of this layer left, got one of another layer"
    with Untouched(layer), pytest.raises(ValueError, match=f"^{message}"):
        layer.backward(zeros(L, N, E), cache=other.cache)
    with Untouched(layer), pytest.raises(ValueError, match=f"^{message}"):
        layer.cache = other.cache


def overlaps(layer: mh.MultiheadAttention) -> dict[str, tuple[Any, ...]]:
    """Arrays to write to that share memory with others in one way or another."""
    long = zeros(2 * S, N, E)
    query, d_out = zeros(L, N, E), zeros(L, N, E)
    return {
        "in part": (query, d_out, (None, long[:S], long[1 : S + 1])),
        "reversed": (query, d_out, (None, long[:S], long[:S][::-1])),
        "itself": (query, d_out, (np.broadcast_to(zeros(1, N, E), (L, N, E)), None, None)),
        "query": (query, d_out, (query, None, None)),
        "d_out": (query, d_out, (d_out, None, None)),
    }


@pytest.mark.parametrize("case", ["in part", "reversed", "itself", "query", "d_out"])
def test_out_that_overlaps(case: str, layer: mh.MultiheadAttention) -> None:
    query, d_out, out = overlaps(layer)[case]
    call(layer, query=query)
    with Untouched(layer), pytest.raises(ValueError, match=r"out\[\d\]"):
        layer.backward(d_out, out=out)


def test_out_that_is_read_only(layer: mh.MultiheadAttention) -> None:
    frozen = zeros(L, N, E)
    frozen.flags.writeable = False
    with Untouched(layer), pytest.raises(ValueError, match=r"out\[0\].*writ"):
        layer.backward(zeros(L, N, E), out=(frozen, None, None))


def test_state_dict_with_a_wrong_shape(layer: mh.MultiheadAttention) -> None:
    state = layer.state_dict()
    state["in_proj_bias"] = zeros(4)
    state["out_proj.bias"] = np.ones(E)
    with Untouched(layer), pytest.raises(ValueError, match=r"in_proj_bias.*\(36,\).*\(4,\)"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("change", [{"extra": zeros(1)}, {"bias_k": zeros(1, 1, E)}])
def test_state_dict_with_unexpected_names(
    change: dict[str, Any], layer: mh.MultiheadAttention
) -> None:
    with Untouched(layer), pytest.raises((ValueError, KeyError), match=next(iter(change))):
        layer.load_state_dict(layer.state_dict() | change)


@pytest.mark.parametrize("value", [(1,), (-1, 0), (0, 2**64), "state", (0.5, 1), 3])
def test_rng_state(value: Any, layer: mh.MultiheadAttention) -> None:
    with Untouched(layer), pytest.raises((ValueError, TypeError), match=r"rng_state|seed|counter"):
        layer.rng_state = value


def test_dropout_is_checked_when_set(layer: mh.MultiheadAttention) -> None:
    with pytest.raises(ValueError, match="dropout"):
        layer.dropout = 1.5
    assert layer.dropout == 0.5


def test_the_engine_itself_writes_to_no_frozen_array(rng: np.random.Generator) -> None:
    d_out, out = rng.standard_normal((2, 1, 2, 5, 8), dtype=np.float32)
    frozen = np.zeros((1, 2, 5), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="result: expected a writable array"):
        _native.delta(d_out, out, frozen)
    assert not frozen.any()
    _native.delta(d_out, out, result := np.zeros_like(frozen))
    np.testing.assert_allclose(result, (d_out * out).sum(-1), rtol=1e-5, atol=1e-6)
