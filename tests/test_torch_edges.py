"""Unusual tensors, parameters and uses of the torch faces: never a crash, never a wrong number."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from multihead.torch import MultiheadAttention, accelerate, restore, scaled_dot_product_attention
from torch_pairs import close, pair

pytorch_s = torch.nn.functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    torch._dynamo.reset()


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(0, 4, 3, 8), (2, 0, 3, 8), (2, 4, 0, 8), (0, 0, 0, 8)], ids=str)
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_over_nothing(shape: tuple[int, ...], mask: str) -> None:
    q = torch.randn(shape, requires_grad=True)
    given: Any = None
    if mask == "bool":
        given = torch.ones(shape[2], shape[2], dtype=torch.bool)
    if mask == "float":
        given = torch.randn(shape[2], shape[2], requires_grad=True)
    out = scaled_dot_product_attention(q, q, q, given)
    assert out.shape == shape
    out.sum().backward()
    assert q.grad.shape == shape
    if mask == "float":
        assert not given.grad.any()


def test_attention_to_no_keys() -> None:
    q, k = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 0, 8)
    for mask in (None, torch.ones(5, 0, dtype=torch.bool), torch.zeros(5, 0)):
        out = scaled_dot_product_attention(q, k, k, mask)
        assert torch.equal(out, torch.zeros(2, 3, 5, 8))
        (grad,) = torch.autograd.grad(out.sum(), q)
        assert not grad.any()


def parameter(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64))


def set_weight(m: Any) -> None:
    m.out_proj.weight, m.out_proj.bias = parameter(4, 8), parameter(4)


CHANGES: dict[str, Any] = {
    "no heads": lambda m: setattr(m, "num_heads", 0),
    "heads that do not divide": lambda m: setattr(m, "num_heads", 3),
    "no weight": lambda m: setattr(m, "in_proj_weight", None),
    "a weight too small": lambda m: setattr(m, "in_proj_weight", parameter(3, 8)),
    "a bias to broadcast": lambda m: setattr(m, "in_proj_bias", parameter(1)),
    "an output too wide": lambda m: setattr(m.out_proj, "weight", parameter(8, 80000)),
    "an output of another width": set_weight,
    "a key row too short": lambda m: setattr(m, "bias_k", parameter(1, 1, 2)),
    "a value row missing": lambda m: setattr(m, "bias_v", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parameters_do_what_they_do_in_pytorch(change: str) -> None:
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    results: list[Any] = []
    for module in pair(8, 2, add_bias_kv="row" in change):
        torch.manual_seed(3)
        CHANGES[change](module)
        try:
            results.append(module(x, x, x)[0])
        except (AssertionError, RuntimeError, ZeroDivisionError, AttributeError) as error:
            results.append((type(error), str(error)))
    if isinstance(results[0], torch.Tensor):
        close(results[1], results[0])
    else:
        assert results[0] == results[1]


def test_tensors_of_zeros_without_memory() -> None:
    theirs, ours = pair(8, 2)
    z = torch._efficientzerotensor((5, 2, 8), dtype=torch.float64)
    close(ours(z, z, z)[0], theirs(z, z, z)[0])
    x = torch.randn(5, 2, 8, dtype=torch.float64, requires_grad=True)
    ours(x, x, x)[0].backward(z)
    assert not x.grad.any()
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    scaled_dot_product_attention(q, q, q).backward(torch._efficientzerotensor((1, 2, 5, 8)))
    assert not q.grad.any()


def test_tensors_whose_sign_is_yet_to_be_turned() -> None:
    def negative(*shape: int) -> torch.Tensor:
        x = torch.randn(*shape, dtype=torch.complex128).conj().imag
        assert x.is_neg()
        return x

    theirs, ours = pair(8, 2)
    x, mask = negative(5, 2, 8), negative(5, 5)
    close(ours(x, x, x, attn_mask=mask)[0], theirs(x, x, x, attn_mask=mask)[0])
    q = negative(1, 2, 5, 8)
    close(scaled_dot_product_attention(q, q, q, mask), pytorch_s(q, q, q, mask))
    grads = []
    for module in (ours, theirs):
        leaf = x.resolve_neg().clone().requires_grad_()
        out = module(leaf, leaf, leaf)[0]
        torch.complex(torch.zeros_like(out), out).conj().square().imag.sum().backward()
        torch.complex(
            torch.zeros_like(out), module(leaf, leaf, leaf)[0]
        ).conj().sum().imag.backward()
        grads.append(leaf.grad)
    close(*grads)


@pytest.mark.parametrize("mode", [False, True], ids=["eager", "dispatch mode"])
@pytest.mark.parametrize("kind", ["layer", "attention"])
def test_second_derivatives_are_there_in_a_dispatch_mode(kind: str, mode: bool) -> None:
    theirs, ours = pair(8, 2)
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)

    def second(call: Any) -> torch.Tensor:
        (grad,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    calls: Any = [lambda x, m=m: m(x[0], x[0], x[0])[0] for m in (ours, theirs)]
    if kind == "attention":
        calls = [lambda x: scaled_dot_product_attention(x, x, x)]
        calls.append(lambda x: (x @ x.mT / 8**0.5).softmax(-1) @ x)
    expected = second(calls[1])
    if mode:
        with Watching():
            close(second(calls[0]), expected)
    else:
        close(second(calls[0]), expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("how", ["eager", "compiled", "dispatch mode"])
def test_transforms_are_followed_everywhere(how: str) -> None:
    theirs, ours = pair(8, 2)
    x, tangent = (torch.randn(5, 2, 8, dtype=torch.float64) for _ in range(2))

    def functions(module: Any) -> list[Any]:
        def loss(x: torch.Tensor) -> torch.Tensor:
            return module(x, x, x)[0].square().sum()

        return [
            lambda x: torch.func.jvp(loss, (x,), (tangent,))[1],
            torch.func.grad(loss),
            torch.vmap(lambda x: module(x, x, x)[0].sum(), in_dims=1),
        ]

    given = [x, x, x[:, None].expand(5, 3, 2, 8)]
    for ours_f, theirs_f, argument in zip(functions(ours), functions(theirs), given, strict=True):
        call = torch.compile(ours_f, backend="aot_eager") if how == "compiled" else ours_f
        expected = theirs_f(argument)
        if how == "dispatch mode":
            with Watching():
                found = call(argument)
        else:
            found = call(argument)
        close(found, expected)


@pytest.mark.parametrize("kind", ["layer", "attention"])
def test_vectorized_jacobians(kind: str) -> None:
    theirs, ours = pair(8, 2)
    x = torch.randn(3, 2, 8, dtype=torch.float64)
    calls: Any = [lambda x, m=m: m(x, x, x)[0] for m in (ours, theirs)]
    if kind == "attention":
        calls = [lambda x, f=f: f(x, x, x) for f in (scaled_dot_product_attention, pytorch_s)]
    found, expected = (
        torch.autograd.functional.jacobian(call, x, vectorize=vectorize)
        for call, vectorize in zip(calls, (True, False), strict=True)
    )
    close(found, expected)


@pytest.mark.parametrize("mode", [False, True], ids=["eager", "dispatch mode"])
def test_weights_that_nothing_changes_have_no_graph(mode: bool) -> None:
    ours = MultiheadAttention(8, 2).requires_grad_(False)
    ours.out_proj.requires_grad_(True)
    x = torch.randn(5, 2, 8)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    with Watching() if mode else torch.enable_grad():
        out, weights = ours(x, x, x, attn_mask=mask)
    assert out.requires_grad
    assert not weights.requires_grad
    mask.fill_(True)
    out.sum().backward()
    assert ours.out_proj.weight.grad.any()


class Guarded(torch.nn.MultiheadAttention):
    """A class that leaves something out of its pickles."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name != "handle"}


def test_an_accelerated_subclass_keeps_its_own_state() -> None:
    module = Guarded(8, 2)
    module.handle = (i for i in range(3))  # cannot be pickled
    accelerate(module)
    other = pickle.loads(pickle.dumps(module))
    assert isinstance(other, MultiheadAttention)
    assert not hasattr(other, "handle")


def test_another_default_device_does_not_matter() -> None:
    ours = MultiheadAttention(8, 2, dropout=0.5)
    x = torch.randn(5, 2, 8, requires_grad=True)
    q = torch.randn(1, 2, 5, 4)
    with torch.device("meta"):
        out, weights = ours(x, x, x)
        attended = scaled_dot_product_attention(q, q, q, dropout_p=0.5)
        (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert {y.device.type for y in (out, weights, attended, grad)} == {"cpu"}


def test_where_pytorch_gives_no_gradient_there_is_none() -> None:
    for module in pair(8, 2, kdim=4, vdim=6):
        x, k, v = (torch.randn(5, 2, n, dtype=torch.float64, requires_grad=True) for n in (8, 4, 6))
        module(x, k, v)[1].square().sum().backward()
        assert v.grad is None
        without = {name for name, p in module.named_parameters() if p.grad is None}
        assert without == {"v_proj_weight", "out_proj.weight", "out_proj.bias"}
        module.requires_grad_(False)
        out, weights = module(x.detach(), k.detach(), v)
        assert out.requires_grad
        assert not weights.requires_grad
        torch.autograd.grad(weights.sum() + out.sum(), v, create_graph=True)


class Derived(torch.nn.MultiheadAttention):
    """A class that can be pickled by its name."""


def test_an_accelerated_subclass_is_pickled() -> None:
    model = torch.nn.Sequential(Derived(8, 2), Derived(8, 2))
    assert accelerate(model) == 2
    assert type(model[0]) is type(model[1])
    other = pickle.loads(pickle.dumps(model))
    x = torch.randn(5, 2, 8)
    assert isinstance(other[0], MultiheadAttention)
    assert torch.equal(other[0](x, x, x)[0], model[0](x, x, x)[0])
    assert restore(other) == 2
    assert type(other[0]) is Derived


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_autograd() -> None:
    ours = MultiheadAttention(8, 2)
    x = torch.randn(5, 2, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(ours(x, x, x)[0].square().sum(), x)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        ours(x, x, x)[0].square().sum().backward()
    close(x.grad, expected, 1e-6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_jagged_batches_of_equal_lengths_made_apart() -> None:
    _, ours = pair(8, 2, batch_first=True)
    parts = [[torch.randn(n, 8, dtype=torch.float64) for n in (3, 4)] for _ in range(3)]
    three = [torch.nested.nested_tensor(p, layout=torch.jagged) for p in parts]
    out, _ = ours(*three)
    for i, found in enumerate(out.unbind()):
        close(found, ours(*[p[i] for p in parts])[0])


def test_an_out_proj_without_a_tensor_for_weight() -> None:
    ours = MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    expected = ours(x, x, x)[0]

    class Other(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def weight(self) -> torch.Tensor:
            return self.inner.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    ours.out_proj = Other(ours.out_proj)
    close(ours(x, x, x)[0], expected, 1e-5)


@pytest.mark.parametrize(
    "given",
    [{"attn_mask": [[0.0]]}, {"key_padding_mask": "all"}, {"query": None}],
    ids=["list", "str", "None"],
)
def test_what_is_no_tensor_is_pytorch_s_error(given: dict[str, Any]) -> None:
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    failures = []
    for module in pair(8, 2):
        with pytest.raises((TypeError, AttributeError)) as failure:
            module(**({"query": x, "key": x, "value": x} | given))
        failures.append((failure.type, str(failure.value)))
    assert failures[0] == failures[1]


def test_an_older_pytorch_is_refused_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    from multihead.torch import requires

    for version, fits in (("2.4.1+cpu", False), ("2.10.0", True), (torch.__version__, True)):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        if fits:
            importlib.reload(requires)
        else:
            with pytest.raises(ImportError, match=r"needs PyTorch 2.8 or later, got 2.4.1"):
                importlib.reload(requires)


@pytest.mark.parametrize("flush", [False, True])
def test_denormal_numbers_are_flushed_where_pytorch_flushes_them(flush: bool) -> None:
    theirs, ours = (
        kind(32, 4, batch_first=True, add_bias_kv=True)
        for kind in (torch.nn.MultiheadAttention, MultiheadAttention)
    )
    ours.load_state_dict(theirs.state_dict())
    exact = copy.deepcopy(theirs).double()
    x, d_out = torch.randn(2, 40, 32) * 1e-38, torch.randn(2, 40, 32)

    def gradients(module: torch.nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaf = x.to(dtype).requires_grad_()
        wanted = [leaf, module.in_proj_bias, module.bias_k]
        return torch.autograd.grad(module(leaf, leaf, leaf)[0], wanted, d_out.to(dtype))

    torch.set_flush_denormal(flush)
    try:
        found, expected = (gradients(m, torch.float32) for m in (ours, theirs))
    finally:
        torch.set_flush_denormal(False)
    some = 0
    for a, b, c in zip(found, expected, gradients(exact, torch.float64), strict=True):
        denormal = (c.abs() > 1e-42) & (c.abs() < 1e-38)
        some += int(denormal.sum())
        if flush:
            assert not a[denormal].any()
            assert not b[denormal].any()
        else:
            assert (a - c).abs().max() < 1e-6 * c.abs().max() + 1e-43
            assert (a[denormal] != 0).all()
    assert some > 16
