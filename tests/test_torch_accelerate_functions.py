"""`accelerate(model, functions=True)`: models that call PyTorch's functions, and the report."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils import parametrizations, parametrize

from attention_models import MODELS, ByHand, Processed, Reader, Speech, SpeechAttention, Vision
from multihead.torch import MultiheadAttention, accelerate, attention, explain, restore, scope
from tolerance import CANCELLED, TORCH, assert_close, tolerance

pytestmark = [
    pytest.mark.filterwarnings("ignore:Reader reads:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]
EXACT = tolerance(TORCH, "float64")
REDIRECTED = "engine: PyTorch's functions are redirected"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each call of PyTorch's functions that one of ours computes."""
    made: list[int] = []
    for name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
        inner = getattr(scope, name)

        def counted(*args: Any, inner: Any = inner, **how: Any) -> Any:
            made.append(1)
            return inner(*args, **how)

        monkeypatch.setattr(scope, name, counted)
    return made


def close(found: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    a, b = found.detach().numpy(), expected.detach().numpy()
    assert_close(a, b, EXACT, name, scale=CANCELLED)


WHERE = {
    "vision": ("blocks.0.attn", "blocks.1.attn"),
    "speech": ("heard", "said", "cross"),
    "hidden": ("",),
    "reader": ("",),
    "processed": ("",),
    "language": ("",),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_calls_are_ours(name: str, calls: list[int]) -> None:
    theirs = MODELS[name]().double()
    ours = copy.deepcopy(theirs)
    report = accelerate(ours, functions=True)
    assert report.functions == WHERE[name]
    assert report == len(report.changed) == len(WHERE[name])
    assert all(row.way.startswith(REDIRECTED) for row in report.changed)
    inputs = [x.double().requires_grad_() for x in theirs.inputs()]
    results = []
    for model in (ours, theirs):
        out = model(*inputs)
        grads = torch.autograd.grad(
            out.square().sum(), [*inputs, *model.parameters()], allow_unused=True
        )
        results.append([out, *grads])
    for found, expected in zip(*results, strict=True):
        if found is not None:
            close(found, expected)
    assert len(calls) == {"vision": 2, "speech": 3}.get(name, 1)
    assert torch._C._len_torch_function_stack() == 0
    assert accelerate(ours, functions=True) == 0
    assert restore(ours) == len(WHERE[name])
    assert [type(x) for x in ours.modules()] == [type(x) for x in theirs.modules()]
    calls.clear()
    ours(*inputs)
    assert calls == []


def test_what_is_beside_the_calls_is_not_in_the_scope() -> None:
    model = Speech()
    accelerate(model, functions=True)
    seen: list[int] = []
    hook = lambda *_: seen.append(torch._C._len_torch_function_stack())  # noqa: E731
    model.cross.query.register_forward_hook(hook)
    model(*model.inputs())
    assert seen == [0]  # it is `attend` that calls


def test_a_module_is_the_same_to_whoever_asks() -> None:
    model = Vision()
    state, modules = model.state_dict(), list(model.modules())
    kind = type(model.blocks[0].attn)
    signature = inspect.signature(model.blocks[0].attn.forward)
    accelerate(model, functions=True)
    attn = model.blocks[0].attn
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert list(model.state_dict()) == list(state)
    assert isinstance(attn, kind)
    assert (type(attn).__name__, type(attn).__module__) == (kind.__name__, kind.__module__)
    assert type(attn) is type(model.blocks[1].attn)
    assert inspect.signature(attn.forward) == signature
    assert model.load_state_dict(state)
    assert "forward" not in vars(attn)


def test_it_is_copied_pickled_and_saved(calls: list[int], tmp_path: Any) -> None:
    model = Vision().eval()
    accelerate(model, functions=True)
    (x,) = model.inputs()
    expected = model(x)
    torch.save(model, tmp_path / "model")
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model", weights_only=False),
    ]
    for other in copies:
        calls.clear()
        assert torch.equal(other(x), expected)
        assert len(calls) == 2
        assert restore(other) == 2
        assert not any("multihead" in key for x in other.modules() for key in vars(x))
    assert len(accelerate(model, functions=True).functions) == 2


def test_hooks_and_wrappers_go_on_working(calls: list[int]) -> None:
    model = Vision()
    fired: list[str] = []
    model.blocks[0].attn.register_forward_pre_hook(lambda *_: fired.append("before"))
    accelerate(model, functions=True)
    model.blocks[0].attn.register_forward_hook(lambda *_: fired.append("after"))
    model(*model.inputs())
    assert fired == ["before", "after"]
    parts = torch.nn.Sequential(*model.blocks)
    parts(*model.inputs())
    assert len(calls) == 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_computed_again_on_the_engine(reentrant: bool) -> None:
    model = Vision(dropout=0.5).double()
    accelerate(model, functions=True)
    grads = []
    for checkpoints in (None, reentrant):
        model.checkpoints = checkpoints
        x = torch.linspace(-1, 1, 168, dtype=torch.float64).view(2, 7, 12).requires_grad_()
        torch.manual_seed(3)
        model(x).square().sum().backward()
        grads.append(x.grad)
    close(*grads)


@pytest.mark.parametrize("name", ["vision", "speech", "reader", "hidden"])
def test_it_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model = MODELS[name]().double()
    accelerate(model, functions=True)
    inputs = [x.double() for x in model.inputs()]
    expected = model(*inputs)
    recorded = EagerAndRecordGraphs()
    for backend in (recorded, "aot_eager"):
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        out = compiled(*inputs)
        close(out, expected)
        if out.requires_grad:
            params = list(model.parameters())
            pairs = [torch.autograd.grad(x.square().sum(), params) for x in (out, model(*inputs))]
            for found, other in zip(*pairs, strict=True):
                close(found, other)
    nodes = [str(node.target) for graph in recorded.graphs for node in graph.graph.nodes]
    found = {x for x in nodes if "attention" in x and "proj" not in x and "heard" not in x}
    ours = "multihead.attention" if name == "reader" else "multihead.scaled_dot_product_attention"
    assert {x for x in found if not x.startswith("L_")} == {ours}


def test_it_is_exported_traced_and_scripted_as_without() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scaled_dot_product_attention(x, x, x)

    model, x = Plain(), torch.randn(2, 3, 5, 4)
    accelerate(model, functions=True)
    program = torch.export.export(model, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "aten.scaled_dot_product_attention.default" in targets
    assert not any("multihead" in target for target in targets)
    for made in (program.module(), torch.jit.trace(model, (x,)), torch.jit.script(model)):
        torch.testing.assert_close(made(x), model(x))
    assert type(model) is not Plain  # a copy was scripted


def test_parametrized_modules() -> None:
    model = SpeechAttention(12, 2).double()
    parametrizations.weight_norm(model.query)
    model.gain = torch.nn.Parameter(torch.ones(3))
    parametrize.register_parametrization(model, "gain", torch.nn.Tanh())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    expected = model(x)
    assert accelerate(model, functions=True) == 1
    close(model(x), expected)
    assert torch.equal(model.gain, torch.ones(3).tanh())
    assert restore(model) == 1
    parametrize.remove_parametrizations(model, "gain")
    assert type(model) is SpeechAttention


# --- Who is found


def helper(x: torch.Tensor) -> torch.Tensor:
    return TABLE["exact"](x)


def exact(x: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(x, x, x)


TABLE = {"exact": exact, "none": abs}


class Helped(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return helper(x)


class Given(torch.nn.Module):
    def __init__(self, attend: Any) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(x, x, x)


class Importing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import scaled_dot_product_attention as attend

        return attend(x, x, x)


class Base(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch._C._nn.scaled_dot_product_attention(x, x, x)


class Derived(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class OfParts(torch.nn.Module):
    def scores(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x, x.mT).softmax(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(self.scores(x), x)


class OwnName(torch.nn.Module):
    def scaled_dot_product_attention(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nij,njk->nik", (x @ x.mT).softmax(-1), x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled_dot_product_attention(x)


class Router(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.mT).softmax(-1)


MAKES = """
import torch
import torch.nn.functional as F
class Sourceless(torch.nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)
"""
made: dict[str, Any] = {"__name__": "made"}
exec(MAKES, made)

FOUND: dict[str, Any] = {
    "helper": Helped,
    "attribute": lambda: Given(scaled_dot_product_attention),
    "partial": lambda: Given(functools.partial(scaled_dot_product_attention, scale=0.5)),
    "object": Processed,
    "import": Importing,
    "derived": Derived,
    "no source": made["Sourceless"],
}


@pytest.mark.parametrize("name", FOUND)
def test_calls_are_found_in_code(name: str, calls: list[int]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), FOUND[name](), torch.nn.GELU())
    assert "functions=True" in explain(model)
    report = accelerate(model, functions=True)
    assert (report, report.functions, report.left) == (1, ("1",), ())
    x = torch.randn(2, 5, 4)
    if name != "helper":
        x = x[None]
    out = model(x)
    assert calls == [1]
    restore(model)
    torch.testing.assert_close(out, model(x))


@pytest.mark.parametrize("kind", [ByHand, OfParts, OwnName])
def test_attention_of_a_model_s_own_is_left_and_said(kind: Any) -> None:
    model = torch.nn.ModuleDict({"own": kind(), "layer": torch.nn.MultiheadAttention(8, 2)})
    report = accelerate(model, functions=True)
    assert [row.name for row in report.changed] == ["layer"]
    assert [row.name for row in report.left] == ["own"]
    assert report.left[0].kind == kind.__name__
    assert report.left[0].way.startswith("its own: a softmax between two products")
    assert type(model["own"]) is kind
    assert report.functions == ()


def test_a_softmax_alone_is_no_attention() -> None:
    model = torch.nn.ModuleList([Router(), torch.nn.MultiheadAttention(8, 2)])
    assert accelerate(model).left == ()


def test_a_layer_whose_own_forward_calls_the_function(calls: list[int]) -> None:
    class Own(torch.nn.MultiheadAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scaled_dot_product_attention(x, x, x)

    model = torch.nn.Sequential(Own(4, 2))
    report = accelerate(model, functions=True)
    assert "Own has a forward of its own, with PyTorch's functions redirected" in str(report)
    assert report == 1
    model(torch.randn(2, 5, 4))
    assert calls == [1]
    assert restore(model) == 1


def test_a_forward_on_the_instance_is_left_and_said() -> None:
    model = torch.nn.Sequential(Importing(), torch.nn.MultiheadAttention(8, 2))
    model[0].forward = lambda x: x
    report = accelerate(model, functions=True)
    assert report == 1
    assert report.left[0].way == "its own: a forward was put on the instance"
    assert type(model[0]) is Importing


def test_readers_are_reached(calls: list[int]) -> None:
    model = torch.nn.Sequential(Reader())
    with pytest.warns(UserWarning, match="Reader reads the parameters"):
        report = accelerate(model, functions=True)
    assert (report, report.functions) == (1, ("0",))
    assert [row.name for row in report.left] == ["0.layer"]
    model(*Reader.inputs())
    assert calls == [1]


# --- The report


def test_a_report_is_a_number_and_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.ModuleDict(
        {"a": torch.nn.MultiheadAttention(8, 2), "b": ByHand(), "c": Importing()}
    )
    report = accelerate(model, verbose=True)
    assert capsys.readouterr().out == f"{report!s}\n"
    assert report == 1
    assert (f"{report}", f"{report:3d}", repr(report)) == ("1", "  1", "1")
    assert str(report).splitlines() == [
        "1 module changed, 2 left",
        "changed:",
        "a  MultiheadAttention  engine",
        "left:",
        "b  ByHand     its own: a softmax between two products, in code of its own",
        "c  Importing  PyTorch's functions: accelerate(model, functions=True) redirects them to "
        "the engine",
    ]
    for other in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report)):
        assert (other, other.changed, other.left) == (report, report.changed, report.left)
    second = accelerate(model, functions=True)
    assert (second, second.functions) == (1, ("c",))
    assert capsys.readouterr().out == ""
    assert explain(model).splitlines()[2].endswith(REDIRECTED)


def test_a_layer_that_changed_and_is_left_to_pytorch_is_in_both() -> None:
    report = accelerate(torch.nn.MultiheadAttention(8, 2, device="meta"))
    assert report.changed == report.left
    assert "on meta" in str(report)


def test_changing_nothing_is_said_with_a_way_out() -> None:
    with pytest.warns(UserWarning, match=r"changed nothing: .* functions=True redirects;"):
        assert accelerate(Vision()) == 0
    with pytest.warns(UserWarning, match=r"changed nothing"):
        assert accelerate(torch.nn.Linear(3, 3), functions=True) == 0
    with pytest.warns(UserWarning, match=r"changed nothing"):
        assert accelerate(torch.nn.ModuleList([MODELS["hidden"]()]), functions=True) == 0


def test_a_model_of_ours_alone_is_not_wrapped() -> None:
    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MultiheadAttention(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, x, x)[0]

    model = Around()
    report = accelerate(model, functions=True)
    assert (report, report.functions, type(model)) == (0, (), Around)


def test_a_scope_around_an_accelerated_model_is_entered_once(calls: list[int]) -> None:
    model = Vision()
    accelerate(model, functions=True)
    seen: list[int] = []
    hook = lambda *_: seen.append(torch._C._len_torch_function_stack())  # noqa: E731
    model.blocks[0].attn.qkv.register_forward_hook(hook)
    with attention():
        model(*model.inputs())
    model(*model.inputs())
    assert seen == [1, 1]
    assert len(calls) == 4
