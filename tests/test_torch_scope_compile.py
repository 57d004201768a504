"""`multihead.torch.attention` under `torch.compile`, from within and from without."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.nn.functional import scaled_dot_product_attention as by_name

from attention_models import MODELS
from multihead.torch import attention
from scope_calls import DOT, close, depth


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
