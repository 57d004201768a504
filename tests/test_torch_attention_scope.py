"""`multihead.torch.attention`: PyTorch's functions are ours in a scope, and nowhere else."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from typing import Any

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.nn import functional as F  # noqa: N812 (as models have it)
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention as by_name
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from attention_models import MODELS, Vision
from multihead.torch import MultiheadAttention, attention, scaled_dot_product_attention, scope
from tolerance import CANCELLED, TORCH, assert_close, tolerance

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*NestedTensor does not implement:UserWarning"),
]
EXACT = tolerance(TORCH, "float64")
DOT, LAYER = scope.SCALED_DOT_PRODUCT, scope.MULTI_HEAD
FUNCTIONS = {"attribute": lambda *a, **k: F.scaled_dot_product_attention(*a, **k), "name": by_name}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our functions that computed a call, in its order."""
    made: list[str] = []

    def counted(name: str) -> None:
        inner = getattr(scope, name)

        def call(*args: Any, **how: Any) -> Any:
            found = inner(*args, **how)
            if found is not None:
                made.append(name)
            return found

        monkeypatch.setattr(scope, name, call)

    counted("scaled_dot_product_attention")
    counted("multi_head_attention_forward")
    return made


def close(found: Any, expected: Any, name: str = "") -> None:
    a, b = found.detach().numpy(), expected.detach().numpy()
    assert_close(a, b, EXACT, name, scale=CANCELLED)


def depth() -> int:
    return torch._C._len_torch_function_stack()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_function_is_ours_by_whatever_name(function: str, calls: list[str]) -> None:
    attend = FUNCTIONS[function]
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind()
    # PyTorch's has NaN here, or refuses both at once
    mask = torch.tensor([[True], [False], [True], [True], [True]])
    with attention():
        out = attend(q, k, v, attn_mask=mask, is_causal=True, scale=0.3)
    assert calls == ["scaled_dot_product_attention"]
    assert torch.equal(out, scaled_dot_product_attention(q, k, v, mask, 0.0, True, 0.3))
    assert not out[:, :, 1].any()
    attend(q, k, v)
    assert len(calls) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same(name: str, training: bool, calls: list[str]) -> None:
    model = MODELS[name]().double().train(training)
    inputs = [x.double().requires_grad_() for x in model.inputs()]
    results = []
    for redirected in (True, False):
        with torch.set_grad_enabled(training):
            if redirected:
                with attention():
                    out = model(*inputs)
            else:
                out = model(*inputs)
        results.append([out])
        if training:
            every = [*inputs, *(p for p in model.parameters() if p.requires_grad)]
            grad = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
            results[-1] += torch.autograd.grad(out, every, grad, allow_unused=True)
    for found, expected in zip(*results, strict=True):
        if found is not None:
            close(found, expected)
    assert len(calls) == {"vision": 2, "speech": 3}.get(name, 1)


def test_second_derivatives() -> None:
    def call(*tensors: torch.Tensor) -> torch.Tensor:
        with attention():
            return by_name(*tensors, is_causal=True)

    inputs = [torch.randn(2, 1, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_dropout_is_drawn_from_pytorch_s_generator(calls: list[str]) -> None:
    model = Vision(dropout=0.4)
    (x,) = model.inputs()
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with attention():
            outs.append(model(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    q = torch.randn(2, 3, 9, 4)
    torch.manual_seed(5)
    ours = scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    torch.manual_seed(5)
    with attention():
        assert torch.equal(by_name(q, q, q, dropout_p=0.5), ours)


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_and_no_grad(inside: bool, calls: list[str]) -> None:
    q = torch.randn(2, 3, 9, 4, requires_grad=True)
    for mode in (torch.inference_mode, torch.no_grad):
        contexts = [attention(), mode()]
        with contexts[inside], contexts[not inside]:
            out = by_name(q, q, q)
        assert not out.requires_grad
    assert len(calls) == 2


# --- The scope


def test_scopes_nest_and_are_entered_again(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    context = attention()
    with context:
        with attention(), context:
            assert depth() == 3
            by_name(q, q, q)
        by_name(q, q, q)
    with context:
        by_name(q, q, q)
    by_name(q, q, q)
    assert len(calls) == 3
    assert depth() == 0


def test_an_exception_leaves_nothing_behind(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(RuntimeError, match=r"size|shape"), attention(), attention():
        by_name(q, q[..., :3], q)
    assert depth() == 0
    with pytest.raises(ZeroDivisionError), attention():
        _ = 1 / 0
    assert depth() == 0
    calls.clear()
    by_name(q, q, q)
    assert F.scaled_dot_product_attention is by_name is DOT
    assert F.multi_head_attention_forward is LAYER
    assert calls == []


def test_other_modes_are_passed_on_to(calls: list[str]) -> None:
    seen = []

    class Seeing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    q = torch.randn(1, 2, 5, 4)
    with attention(), Seeing():
        by_name(q, q, q)
    assert DOT in seen
    with Seeing(), attention(), torch.device("cpu"):
        by_name(q, q, q)
        assert torch.randn(3).device.type == "cpu"
    assert len(calls) == 2


def test_a_scope_is_its_thread_s(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    entered, done = threading.Event(), threading.Event()
    inside: list[int] = []

    def redirected() -> None:
        with attention():
            by_name(q, q, q)
            inside.append(len(calls))
            entered.set()
            assert done.wait(60)
        inside.append(depth())

    thread = threading.Thread(target=redirected)
    thread.start()
    assert entered.wait(60)
    by_name(q, q, q)
    assert depth() == 0
    done.set()
    thread.join(60)
    assert inside == [1, 0]
    assert len(calls) == 1
    other: list[int] = []
    with attention():
        thread = threading.Thread(target=lambda: other.append(depth()))
        thread.start()
        thread.join(60)
    assert other == [0]


def test_many_threads_at_once() -> None:
    q = torch.randn(1, 2, 5, 4)
    q[..., 0, :] = 0
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[3] = False
    expected = scaled_dot_product_attention(q, q, q, mask)
    start, wrong = threading.Barrier(6), []

    def work(redirected: bool) -> None:
        start.wait(60)
        for _ in range(200):
            if redirected:
                with attention():
                    out = by_name(q, q, q, mask)
                    if not torch.equal(out, expected):
                        wrong.append("redirected")
            if depth():
                wrong.append("left behind")

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_tasks_that_take_turns_leave_nothing_behind(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)

    async def task(turns: int) -> None:
        for _ in range(turns):
            with attention():
                await asyncio.sleep(0)
                by_name(q, q, q)
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(task(3), task(5))

    asyncio.run(both())
    assert (len(calls), depth()) == (8, 0)


@pytest.mark.parametrize(
    ("how", "reentrant"),
    [("method", True), ("method", False), ("function", True), ("function", False), ("grad", False)],
)
def test_a_backward_in_the_scope_computes_again_in_it(how: str, reentrant: bool) -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        return by_name(x, x, x, dropout_p=0.5)

    q = torch.randn(1, 2, 5, 4, requires_grad=True)
    with attention():
        torch.manual_seed(1)
        out = checkpoint(attend, q, use_reentrant=reentrant).sum()
        if how == "method":
            out.backward()
        elif how == "function":
            torch.autograd.backward(out)
        else:
            (q.grad,) = torch.autograd.grad(out, q)
        assert depth() == 1
    torch.manual_seed(1)
    out = scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    assert torch.equal(q.grad, torch.autograd.grad(out.sum(), q)[0])


def test_autocast(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    with attention(), torch.autocast("cpu", torch.bfloat16):
        out = by_name(q, q, q)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(out, scaled_dot_product_attention(q, q, q))
    assert (out.dtype, len(calls)) == (torch.bfloat16, 1)


# --- What PyTorch computes


def nested(*lengths: int) -> torch.Tensor:
    x = torch.nested.nested_tensor(
        [torch.randn(length, 2, 4) for length in lengths], layout=torch.jagged
    )
    return x.transpose(1, 2)


def mapped(q: torch.Tensor) -> torch.Tensor:
    return torch.vmap(lambda x: by_name(x, x, x))(q)


def tangents(q: torch.Tensor) -> torch.Tensor:
    """PyTorch has a slope of its composed path alone."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.func.jvp(lambda x: by_name(x, q, q), (q,), (torch.ones_like(q),))[1]


def traced(q: torch.Tensor) -> Any:
    made = torch.jit.trace(lambda x: by_name(x, x, x), (q,))
    assert "scaled_dot_product_attention" in str(made.graph)
    return made(q)


LEFT: dict[str, Any] = {
    "meta": lambda q: by_name(*[q.to("meta")] * 3),
    "integers": lambda q: by_name(*[q.long()] * 3),
    "complex": lambda q: by_name(*[q.to(torch.complex64)] * 3),
    "dtypes": lambda q: by_name(q, q.double(), q),
    "nested": lambda q: by_name(*[nested(3, 5)] * 3).values(),
    "bias of a subclass": lambda q: by_name(q, q, q, causal_lower_right(5, 5)),
    "vmap": mapped,
    "gradient": torch.func.grad(lambda q: by_name(q, q, q).sum()),
    "forward mode": tangents,
    "trace": traced,
    "one query's axes": lambda q: by_name(q[0, 0, 0], q[0, 0, 0], q[0, 0, 0]),
    "probability": lambda q: by_name(q, q, q, dropout_p=2.0),
    "name": lambda q: by_name(q, q, q, attention_mask=None),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_ours_does_not_take_is_pytorch_s(what: str) -> None:
    q = torch.randn(2, 2, 5, 4)
    found: list[Any] = []
    for context in (attention(), torch.device("cpu")):
        torch.manual_seed(3)
        with context:
            try:
                found.append(LEFT[what](q))
            except Exception as error:
                found.append((type(error), str(error)))
    ours, theirs = found
    if isinstance(theirs, torch.Tensor):
        assert ours.device == theirs.device
        assert ours.is_meta or torch.equal(ours, theirs)
    else:
        assert ours == theirs
    assert isinstance(theirs, tuple) == (what in REFUSED)
    assert depth() == 0


REFUSED = ("integers", "complex", "dtypes", "one query's axes", "probability", "name")


def test_a_graph_has_pytorch_s_function(calls: list[str]) -> None:
    with attention():
        graph = torch.fx.symbolic_trace(Vision(depth=1))
    assert DOT in {node.target for node in graph.graph.nodes}
    x = torch.randn(2, 7, 12)
    graph(x)
    assert calls == []
    with attention():
        graph(x)
    assert calls == ["scaled_dot_product_attention"]


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_is_pytorch_s(strict: bool) -> None:
    model = Vision(depth=1).eval()
    targets = []
    for context in (attention(), torch.device("cpu")):
        with context:
            program = torch.export.export(model, model.inputs(), strict=strict)
        targets.append([str(node.target) for node in program.graph.nodes])
        assert torch.isfinite(program.module()(*model.inputs())).all()
    assert targets[0] == targets[1]
    assert "aten.scaled_dot_product_attention.default" in targets[0]


# --- The layer's function


def layer_arguments(module: torch.nn.MultiheadAttention) -> dict[str, Any]:
    names = ("num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "add_zero_attn")
    own = {name: getattr(module, name) for name in names}
    separate = {f"{x}_proj_weight": getattr(module, f"{x}_proj_weight") for x in "qkv"}
    return {
        **own,
        **separate,
        "use_separate_proj_weight": not module._qkv_same_embed_dim,
        "embed_dim_to_check": module.embed_dim,
        "dropout_p": 0.0,
        "out_proj_weight": module.out_proj.weight,
        "out_proj_bias": module.out_proj.bias,
    }


MADE: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "widths": {"kdim": 5, "vdim": 7},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}
CALLED: dict[str, dict[str, Any]] = {
    "weights": {},
    "each head": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
    "padding": {"key_padding_mask": True},
    "mask": {"attn_mask": "bool"},
    "mask of each head": {"attn_mask": "heads", "need_weights": False},
    "causal": {"attn_mask": "causal", "is_causal": True, "need_weights": False},
    "causal, weights": {"attn_mask": "causal", "is_causal": True},
    "a hint that is wrong": {"attn_mask": "bool", "is_causal": True},
    "padding, causal": {"attn_mask": "causal", "is_causal": True, "key_padding_mask": True},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("called", CALLED)
@pytest.mark.parametrize("made", MADE)
def test_the_layer_s_function(made: str, called: str, unbatched: bool, calls: list[str]) -> None:
    module = torch.nn.MultiheadAttention(12, 3, **MADE[made], dtype=torch.float64)
    given = layer_arguments(module) | CALLED[called]
    n, length, source = 2, 6, 6 if made == "plain" else 8
    shapes = [(length, n, 12), (source, n, module.kdim), (source, n, module.vdim)]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    if made == "plain":
        inputs = [inputs[0]] * 3
    if "key_padding_mask" in given:
        given["key_padding_mask"] = torch.arange(source) >= torch.tensor([[source], [4]])
    masks = {
        "bool": torch.arange(length)[:, None] + 2 < torch.arange(source),
        "heads": torch.rand(n * 3, length, source) < 0.3,
        "causal": torch.ones(length, source, dtype=torch.bool).triu(1),
    }
    masks["heads"][..., 0] = False
    if "attn_mask" in given:
        given["attn_mask"] = masks[given["attn_mask"]]
    if unbatched:
        inputs = [x[:, 0] for x in inputs]
        if "key_padding_mask" in given:
            given["key_padding_mask"] = given["key_padding_mask"][1]
        if given.get("attn_mask", torch.empty(0)).dim() == 3:
            given["attn_mask"] = given["attn_mask"][:3]
    inputs = [x.requires_grad_() for x in inputs]
    results = []
    for context in (attention(), torch.device("cpu")):
        with context:
            out, weights = F.multi_head_attention_forward(*inputs, **given)
        grad = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
        loss = (out * grad).sum() + (0 if weights is None else weights.square().sum())
        every = [inputs[0], *module.parameters()]
        results.append([out, weights, *torch.autograd.grad(loss, every)])
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            close(found, expected)
    extra_and_causal = made == "extra keys" and given.get("is_causal", False)
    assert calls == ([] if extra_and_causal else ["multi_head_attention_forward"])


def test_the_layer_s_function_is_pytorch_s_where_ours_does_not_take_it(calls: list[str]) -> None:
    module = torch.nn.MultiheadAttention(12, 3)
    given, x = layer_arguments(module), torch.randn(6, 2, 12)
    static = {"static_k": torch.randn(6, 6, 4), "static_v": torch.randn(6, 6, 4)}
    odd: list[tuple[torch.Tensor, dict[str, Any]]] = [
        (x, static),
        (x.double(), {}),
        (x, {"is_causal": True}),
        (x, {"attn_mask": torch.zeros(5, 5)}),
        (x, {"attn_mask": torch.zeros(1, 1, 6, 6)}),
        (x, {"embed_dim_to_check": 13}),
        (x, {"in_proj_weight": None}),
        (x, {"use_separate_proj_weight": True}),
        (x, {"key_padding_mask": torch.zeros(3, 6)}),
        (x[..., :5], {}),
    ]
    for query, more in odd:
        outcomes: list[Any] = []
        for context in (attention(), torch.device("cpu")):
            with context:
                try:
                    outcomes += F.multi_head_attention_forward(*[query] * 3, **given | more)
                except Exception as error:
                    outcomes += [type(error), str(error)]
        for found, expected in zip(outcomes[:2], outcomes[2:], strict=True):
            same = isinstance(found, torch.Tensor) and torch.equal(found, expected)
            assert same or found == expected, more
    assert calls == []


def test_dropout_of_the_layer_s_function_is_in_training_alone(calls: list[str]) -> None:
    module = torch.nn.MultiheadAttention(12, 3)
    given, x = layer_arguments(module) | {"dropout_p": 0.5}, torch.randn(40, 2, 12)
    with attention():
        _, weights = F.multi_head_attention_forward(x, x, x, **given, average_attn_weights=False)
        _, plain = F.multi_head_attention_forward(x, x, x, **given, training=False)
    assert 0.45 < (weights == 0).double().mean() < 0.55
    assert (plain > 0).all()
    assert len(calls) == 2


@pytest.mark.parametrize("batch_first", [True, False])
def test_pytorch_s_modules_call_it(batch_first: bool, calls: list[str]) -> None:
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=batch_first).double()
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        with torch.set_grad_enabled(training):
            with attention():
                found = layer(x)
            close(found, layer(x))
    assert calls == ["multi_head_attention_forward"] * 2


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_inputs_may_change_where_pytorch_lets_them(batch_first: bool, frozen: bool) -> None:
    module = torch.nn.MultiheadAttention(12, 2, batch_first=batch_first).double()
    module.in_proj_weight.requires_grad_(not frozen)
    outcomes = []
    for context in (attention(), torch.device("cpu")):
        given = torch.linspace(-1, 1, 120, dtype=torch.float64).view(2, 5, 12).requires_grad_()
        x = given * 2
        with context:
            out, _ = module(x, x, x, need_weights=False)
            x.add_(1.0)
        try:
            outcomes.append(torch.autograd.grad(out.square().sum(), given)[0])
        except RuntimeError:  # modified by an in-place operation
            outcomes.append(None)
    assert (outcomes[1] is None) == (not batch_first and not frozen)
    if outcomes[1] is not None:
        close(*outcomes)


def test_layers_of_ours_are_as_without(calls: list[str]) -> None:
    layer, x = MultiheadAttention(12, 2), torch.randn(5, 3, 12)
    expected = layer(x, x, x)
    with attention():
        found = layer(x, x, x)
    assert all(map(torch.equal, found, expected))
    assert calls == []


# --- Under torch.compile


def operations(backend: EagerAndRecordGraphs) -> list[str]:
    nodes = [node for graph in backend.graphs for node in graph.graph.nodes]
    return [str(x.target) for x in nodes if "attention" in str(x.target)]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["vision", "speech", "language", "reader"])
def test_it_is_compiled_from_within_and_from_without(name: str, inside: bool) -> None:
    torch._dynamo.reset()
    model = MODELS[name]().double()
    inputs = model.inputs()
    inputs = tuple(x.double() for x in inputs)

    def within(*given: torch.Tensor) -> torch.Tensor:
        with attention():
            return model(*given)

    recorded = EagerAndRecordGraphs()
    expected = within(*inputs)
    grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    for backend in (recorded, "aot_eager"):
        compiled = torch.compile(within if inside else model, fullgraph=True, backend=backend)
        if inside:
            out = compiled(*inputs)
        else:
            with attention():
                out = compiled(*inputs)
        close(out, expected)
        found = torch.autograd.grad(out.square().sum(), list(model.parameters()))
        for a, b in zip(found, grads, strict=True):
            close(a, b)
        assert depth() == 0
    ours = "multihead.attention" if name == "reader" else "multihead.scaled_dot_product_attention"
    assert set(operations(recorded)) == {ours}


def test_a_compiled_model_knows_whether_it_is_in_the_scope() -> None:
    torch._dynamo.reset()
    recorded = EagerAndRecordGraphs()
    compiled = torch.compile(lambda q: by_name(q, q, q), fullgraph=True, backend=recorded)
    q = torch.randn(1, 2, 5, 4)
    for _ in range(2):
        compiled(q)
        with attention():
            compiled(q)
    theirs, ours = (str(DOT), "multihead.scaled_dot_product_attention")
    assert operations(recorded) == [theirs, ours]


def test_what_ours_does_not_take_compiles_as_pytorch_s() -> None:
    torch._dynamo.reset()
    recorded = EagerAndRecordGraphs()

    def call(q: torch.Tensor) -> torch.Tensor:
        with attention():
            return by_name(q, q, q)

    compiled = torch.compile(call, fullgraph=True, backend=recorded)
    q = torch.randn(1, 2, 5, 4, device="meta")
    assert compiled(q).is_meta
    assert operations(recorded) == [str(DOT)]


def test_graph_breaks_within_the_scope(calls: list[str]) -> None:
    torch._dynamo.reset()

    def call(q: torch.Tensor) -> torch.Tensor:
        with attention():
            out = by_name(q, q, q)
            torch._dynamo.graph_break()
            return by_name(out, q, q)

    recorded = EagerAndRecordGraphs()
    q = torch.randn(1, 2, 5, 4)
    out = torch.compile(call, backend=recorded)(q)
    torch.testing.assert_close(out, by_name(by_name(q, q, q), q, q))
    assert depth() == 0
    assert str(DOT) not in operations(recorded)


# --- What it costs


def test_a_call_costs_little_more_than_ours() -> None:
    q = torch.randn(1, 1, 4, 8)

    def seconds(call: Any, count: int = 300) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            call(q, q, q)
        return (time.perf_counter() - begin) / count

    direct, scoped, others = [], [], []
    with torch.no_grad():
        for _ in range(15):
            direct.append(seconds(scaled_dot_product_attention))
            with attention():
                scoped.append(seconds(by_name))
                others.append(seconds(lambda x, *_: x + x))
    # about 3 µs; the bound leaves room for machines that are slow and busy
    assert min(scoped) - min(direct) < 20e-6
    assert min(others) < 30e-6


def test_a_copy_of_the_scope_is_a_scope(calls: list[str]) -> None:
    q = torch.randn(1, 2, 5, 4)
    with copy.deepcopy(attention()):
        by_name(q, q, q)
    assert len(calls) == 1
