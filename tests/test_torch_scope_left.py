"""`multihead.torch.attention`: what ours does not take is PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention as by_name

from attention_models import Vision
from multihead.torch import attention
from scope_calls import DOT, depth

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*NestedTensor does not implement:UserWarning"),
]


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
