"""Tensors of several dtypes in one call: autocast, and float32 parameters beside half inputs."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from cases import Call, Construction, Step, make_call, oracle_step
from multihead import _native, reference
from multihead.torch import MultiheadAttention, accelerate, explain, scaled_dot_product_attention
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, error, tolerance

HALF = {torch.bfloat16: np.dtype(ml_dtypes.bfloat16), torch.float16: np.dtype(np.float16)}
# which tensors of a call are float32, beside the parameters; the others are half
FLOATS = {
    "autocast": ("query", "key", "value", "attn_mask"),
    "autocast, half queries": ("key", "value", "attn_mask"),
    "half inputs": (),
}
MODES = [*FLOATS, "half module"]
WAYS = ["eager", "compiled", "graph of gradients"]

pytestmark = [
    pytest.mark.parametrize("dtype", HALF, ids=str),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def bound(kind: str, dtype: torch.dtype) -> float:
    """On the way to a result numbers are rounded more than once: q, k, v, probabilities."""
    return 2 * tolerance(kind, HALF[dtype])


def cast(mode: str, dtype: torch.dtype) -> Any:
    return torch.autocast("cpu", dtype) if mode.startswith("autocast") else nullcontext()


def rounded(x: Any, dtype: torch.dtype) -> Any:
    """Floats that the half dtype holds; other arrays as they are."""
    is_float = isinstance(x, np.ndarray) and x.dtype.kind == "f"
    return x.astype(HALF[dtype]).astype(np.float32) if is_float else x


def problem(
    dtype: torch.dtype, layout: str, rng: np.random.Generator
) -> tuple[MultiheadAttention, Call, Step]:
    """A module of float32, a call, and the oracle's step, of numbers that the half dtype holds."""
    how = Construction(24, 3, add_bias_kv=True, layout=layout, dtype="float32")
    drawn = make_call(how, rng, 2, 37, 41, mask="float 2-D", padding="bool", weights="average")
    module = MultiheadAttention(24, 3, add_bias_kv=True, batch_first=layout == "batch first")
    with torch.no_grad():
        for p in module.parameters():
            p.copy_((torch.randn(p.shape) / p.shape[-1] ** 0.5).to(dtype))
    tensors = (drawn.query, drawn.key, drawn.value, drawn.d_out)
    options = {name: rounded(x, dtype) for name, x in drawn.options.items()}
    call = Call(*(rounded(x, dtype) for x in tensors), options, rounded(drawn.d_weights, dtype))
    params = {name: x.double().numpy() for name, x in module.state_dict().items()}
    return module, call, oracle_step(params, how, call)


def run(module: Any, call: Call, dtype: torch.dtype, mode: str, way: str = "eager") -> Step:
    """One forward and backward; every gradient is of its tensor's dtype."""
    given = {"query": call.query, "key": call.key, "value": call.value}
    given["attn_mask"] = call.options["attn_mask"]
    leaves = {
        name: torch.from_numpy(x).to(torch.float32 if name in FLOATS.get(mode, ()) else dtype)
        for name, x in given.items()
    }
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    padding = torch.from_numpy(call.options["key_padding_mask"])
    function = torch.compile(module, fullgraph=True) if way == "compiled" else module
    with cast(mode, dtype):
        out, weights = function(**leaves, key_padding_mask=padding)
    assert out.dtype == weights.dtype == dtype
    wanted = leaves | dict(module.named_parameters())
    grads = torch.autograd.grad(
        (out, weights),
        list(wanted.values()),
        [torch.from_numpy(x).to(dtype) for x in (call.d_out, call.d_weights)],
        create_graph=way == "graph of gradients",
    )
    found = dict(zip(wanted, grads, strict=True))
    assert all(found[name].dtype == x.dtype for name, x in wanted.items())
    arrays = {name: x.detach().float().numpy() for name, x in found.items()}
    return Step(out.detach().float().numpy(), weights.detach().float().numpy(), arrays)


@pytest.mark.parametrize("layout", ["batch first", "sequence first"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_the_layer_is_that_of_the_oracle(
    way: str, mode: str, layout: str, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    module, call, expected = problem(dtype, layout, rng)
    if mode == "half module":
        module.to(dtype)
    found = run(module, call, dtype, mode, way)
    assert_close(found.out, expected.out, bound(FORWARD, dtype), "out")
    assert_close(found.weights, expected.weights, bound(FORWARD, dtype), "weights")
    assert_all_close(
        found.grads, expected.grads, bound(GRADIENT, dtype), mode, sizes=expected.sizes
    )


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
def test_pytorch_s_autocast_is_no_nearer(dtype: torch.dtype, rng: np.random.Generator) -> None:
    ours, call, expected = problem(dtype, "batch first", rng)
    theirs = torch.nn.MultiheadAttention(24, 3, add_bias_kv=True, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    worst = []
    for module in (ours, theirs):
        found = run(module, call, dtype, "autocast")
        steps = {"out": (found.out, expected.out), "weights": (found.weights, expected.weights)}
        steps |= {name: (x, expected.grads[name]) for name, x in found.grads.items()}
        worst.append({name: error(a, b, name) for name, (a, b) in steps.items()})
    for name, x in worst[0].items():
        assert x <= 1.5 * worst[1][name] + tolerance(FORWARD, HALF[dtype]) / 8, (name, worst)


@pytest.mark.parametrize("mode", FLOATS)
def test_gradients_of_float32_parameters_are_not_rounded(
    mode: str, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    module, call, _ = problem(dtype, "batch first", rng)
    grads = run(module, call, dtype, mode).grads
    for name, _ in module.named_parameters():
        assert not np.array_equal(grads[name], rounded(grads[name], dtype)), name


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call of the engine."""
    calls: list[tuple[Any, ...]] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> Any:
                calls.append(arguments)
                return getattr(_native, name)(*arguments)

            return call

    for face in ("engine", "sdpa"):
        monkeypatch.setattr(f"multihead.torch.{face}._native", Spy())
    return calls


@pytest.mark.parametrize("mode", FLOATS)
def test_tensors_reach_the_engine_as_they_lie(
    mode: str, dtype: torch.dtype, rng: np.random.Generator, seen: list[tuple[Any, ...]]
) -> None:
    module, call, _ = problem(dtype, "batch first", rng)
    run(module, call, dtype, mode)
    for options, tensors, *_ in seen:
        assert options.dtype == str(dtype)[6:]
        assert tensors.in_weight.data_ptr() == module.in_proj_weight.data_ptr()
        assert tensors.out_bias.data_ptr() == module.out_proj.bias.data_ptr()
        for name, x in (("query", tensors.query), ("key", tensors.key)):
            assert x.dtype == (torch.float32 if name in FLOATS[mode] else dtype)
    (_, _, _, out, weights, _), (*_, d_out, d_weights, grads) = seen
    assert {out.dtype, weights.dtype, d_out.dtype, d_weights.dtype} == {dtype}
    assert grads.in_weight.dtype == torch.float32


@pytest.mark.parametrize("mode", ["autocast", "half inputs"])
def test_attention_is_that_of_the_oracle(
    mode: str, dtype: torch.dtype, rng: np.random.Generator, seen: list[tuple[Any, ...]]
) -> None:
    shapes = {"q": (2, 3, 37, 8), "k": (2, 3, 41, 8), "v": (2, 3, 41, 5), "mask": (37, 41)}
    drawn = {name: rounded(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    d_out = rounded(rng.standard_normal((2, 3, 37, 5)), dtype)
    result = reference.attention(*drawn.values())
    *expected, d_scores, _ = reference.attention_backward(result, d_out)
    expected.append(d_scores.sum((0, 1)))
    of_inputs = torch.float32 if mode == "autocast" else dtype
    for function in (
        scaled_dot_product_attention,
        torch.compile(scaled_dot_product_attention, fullgraph=True),
    ):
        leaves = [torch.from_numpy(x).to(of_inputs).requires_grad_() for x in drawn.values()]
        with cast(mode, dtype):
            out = function(*leaves)
        assert out.dtype == dtype
        assert_close(out.detach().float().numpy(), result.out, bound(FORWARD, dtype), "out")
        found = torch.autograd.grad(out, leaves, torch.from_numpy(d_out).to(dtype))
        for name, grad, x in zip(shapes, found, expected, strict=True):
            assert grad.dtype == of_inputs
            assert_close(grad.float().numpy(), x, bound(GRADIENT, dtype), name)
    forward = [x for x in seen if hasattr(x[0], "scale") and len(x) == 5]
    assert len(forward) == 2
    for options, tensors, out, *_ in forward:
        assert options.dtype == str(dtype)[6:]
        assert tensors.query.dtype == tensors.mask.dtype == of_inputs
        assert out.dtype == dtype


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("mode", ["autocast", "half inputs"])
def test_nested_tensors(mode: str, layout: Any, dtype: torch.dtype) -> None:
    module = MultiheadAttention(12, 3, batch_first=True)
    of_inputs = torch.float32 if mode == "autocast" else dtype
    parts = [torch.randn(n, 12).to(of_inputs).requires_grad_() for n in (5, 33, 1)]
    if layout == torch.strided:
        x = torch.nested.as_nested_tensor(parts, layout=layout)
    else:
        offsets = torch.tensor([0, 5, 38, 39])
        x = torch.nested.nested_tensor_from_jagged(torch.cat(parts), offsets)
    with cast(mode, dtype):
        found = module(x, x, x, need_weights=False)[0].unbind()
        alone = [module(y, y, y, need_weights=False)[0] for y in parts]
    for a, b in zip(found, alone, strict=True):
        assert a.dtype == b.dtype == dtype
        assert_close(
            a.detach().float().numpy(), b.detach().float().numpy(), bound(FORWARD, dtype), "out"
        )
    grads = torch.autograd.grad(sum(y.float().square().sum() for y in found), parts)
    assert all(grad.dtype == of_inputs for grad in grads)


def test_transforms_round_to_the_same_dtype(dtype: torch.dtype) -> None:
    module = MultiheadAttention(12, 3, batch_first=True)
    x = torch.randn(3, 2, 7, 12)
    with torch.autocast("cpu", dtype):
        whole, _ = module(x[0], x[0], x[0])
        mapped = torch.vmap(lambda y: module(y, y, y, need_weights=False)[0])(x)
    assert mapped.dtype == dtype
    a, b = (y.detach().float().numpy() for y in (mapped[0], whole))
    assert_close(a, b, bound(FORWARD, dtype), "out")


def test_a_model_trains_with_float32_parameters(dtype: torch.dtype) -> None:
    layer = torch.nn.TransformerEncoderLayer(12, 3, 24, 0.0, batch_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    x, y = torch.randn(2, 4, 19, 12)
    curves = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < curves[0][0]
    assert_close(np.array(curves[0]), np.array(curves[1]), bound(GRADIENT, dtype), "losses")


def test_explain_and_accelerate_know_them(dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(12, 3, batch_first=True))
    assert accelerate(model) == 1
    layer = model[0]
    layer.out_proj.to(dtype)  # the other parameters stay float32
    assert explain(model).endswith("engine")
    x = torch.randn(2, 7, 12).to(dtype)
    assert layer(x, x, x)[0].dtype == dtype


def test_what_pytorch_refuses_stays_refused(dtype: torch.dtype) -> None:
    x = torch.randn(2, 7, 12)
    wide, narrow = (MultiheadAttention(12, 3, batch_first=True) for _ in range(2))
    narrow.to(dtype)
    with pytest.raises(RuntimeError):
        narrow(x, x, x)
    with pytest.raises((RuntimeError, AssertionError)):
        wide(x.to(dtype), x, x)
    with pytest.raises(RuntimeError):
        wide.double()(x.to(dtype), x.to(dtype), x.to(dtype))
