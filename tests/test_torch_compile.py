"""The torch module under PyTorch's compiler, exporter, dispatch modes and operator checks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils.flop_counter import FlopCounterMode

from multihead.arguments import AttentionOptions, AttentionTensors, LayerOptions
from multihead.rope import Rope
from multihead.torch import MultiheadAttention, scaled_dot_product_attention
from multihead.torch.calls import AttentionCall, LayerCall, Offsets
from multihead.torch.ops import cache_elements
from multihead.torch.schema import flat_attention, flat_layer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*NestedTensor does not implement:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.manual_seed(17)
    torch._dynamo.reset()


def results(call: Any, module: Any, x: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """Output, weights and all gradients."""
    x = x.clone().requires_grad_()
    out, weights = call(x, x, x, **options)
    loss = out.square().sum() + (0 if weights is None else weights.square().sum())
    grads = torch.autograd.grad(loss, [x, *module.parameters()])
    return [out, *([] if weights is None else [weights]), *grads]


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tokens first": {"batch_first": False},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_one_graph_computes_the_same_bits(configuration: str) -> None:
    how = {"batch_first": True} | CONFIGURATIONS[configuration]
    module = MultiheadAttention(12, 3, **how)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(3, 7, 12)
    mask = torch.randn(7 if module.batch_first else 3, 7 if module.batch_first else 3)
    for options in (
        {"need_weights": False},
        {"attn_mask": mask, "is_causal": True},
        {"average_attn_weights": False},
    ):
        pairs = zip(
            results(compiled, module, x, **options),
            results(module, module, x, **options),
            strict=True,
        )
        for found, expected in pairs:
            assert torch.equal(found, expected), options


def test_sizes_are_dynamic() -> None:
    module = MultiheadAttention(12, 3, batch_first=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    frames = 0
    for n, length in ((2, 7), (3, 9), (5, 33), (4, 65)):
        x = torch.randn(n, length, 12)
        hidden = torch.rand(n, length) < 0.3
        hidden[:, 0] = False
        pairs = zip(
            results(compiled, module, x, key_padding_mask=hidden),
            results(module, module, x, key_padding_mask=hidden),
            strict=True,
        )
        for found, expected in pairs:
            assert torch.equal(found, expected)
        frames = frames or counter.frame_count
    assert counter.frame_count == frames > 0


def test_dropout_is_drawn_anew_in_each_compiled_call() -> None:
    module = MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(3, 9, 12, requires_grad=True)
    first, weights = compiled(x, x, x, average_attn_weights=False)
    second, _ = compiled(x, x, x, average_attn_weights=False)
    assert not torch.equal(first, second)
    dropped = (weights == 0).double().mean()
    assert 0.4 < dropped < 0.6
    first.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_whole_encoder_layer_compiles() -> None:
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=True)
    layer.self_attn = MultiheadAttention(12, 2, batch_first=True)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(3, 7, 12, requires_grad=True)
    for found, expected in zip(
        torch.autograd.grad(compiled(x).square().sum(), [x, *layer.parameters()]),
        torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_jagged_batches_compile() -> None:
    module = MultiheadAttention(12, 3, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    parts = [torch.randn(n, 12) for n in (3, 7, 1)]
    grads = []
    for call in (compiled, module):
        x = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
        out, _ = call(x, x, x, need_weights=False)
        out.values().square().sum().backward()
        grads.append([x.grad.values(), *(p.grad.clone() for p in module.parameters())])
        module.zero_grad()
    for found, expected in zip(*grads, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("weights", [True, False])
def test_fake_tensors_have_the_strides_of_real_ones(weights: bool) -> None:
    for batch_first in (True, False):
        module = MultiheadAttention(12, 3, batch_first=batch_first, add_bias_kv=True)
        x = torch.randn(3, 7, 12)
        real = module(x, x, x, need_weights=weights)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake_module = copy.deepcopy(module)
            fake = mode.from_tensor(x)
            shown = fake_module(fake, fake, fake, need_weights=weights)
        for a, b in zip(shown, real, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_flops_are_counted() -> None:
    n, length, embed = 2, 9, 12
    module = MultiheadAttention(embed, 3, batch_first=True)
    x = torch.randn(n, length, embed, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        module(x, x, x)[0].sum().backward()
    projections = 4 * 2 * n * length * embed * embed
    products = 2 * 2 * n * length * length * embed
    assert counter.get_total_flops() == 3 * (projections + products) + products // 2
    q = torch.randn(n, 3, length, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(q, q, q).sum().backward()
    assert counter.get_total_flops() == 3 * products + products // 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_flops_of_ragged_batches_are_those_of_their_sequences() -> None:
    module = MultiheadAttention(12, 3, batch_first=True)
    parts = [torch.randn(n, 12) for n in (3, 7)]
    counts = []
    for x in (*(p[None] for p in parts), torch.nested.as_nested_tensor(parts)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x, x, x, need_weights=False)
        counts.append(counter.get_total_flops())
    assert counts[2] == counts[0] + counts[1] > 0


def arguments(case: str) -> tuple[Any, ...]:
    """Arguments of multihead::attention."""
    embed, heads, n, length, source = 12, 3, 2, 5, 7
    options = LayerOptions(
        dtype="float32",
        num_heads=heads,
        key_heads=heads,
        head_dim=embed // heads,
        zero_row=case == "extra keys",
        causal=case == "causal",
        average=None,
        tokens_first=False,
        dropout_p=0.0,
        seed=None,
    )
    more: dict[str, Any] = {}
    if case == "options":
        more = {"num_kv_heads": 1, "sinks": True, "rope": Rope(), "alibi": True}
        options = options._replace(key_heads=1, softcap=2.0, window_left=3)
    x = torch.randn(n, length, embed, requires_grad=True)
    memory = torch.randn(n, source, embed, requires_grad=True)
    three: tuple[Any, ...] = (x, memory, memory)
    padding = mask = offsets = None
    if case == "shared":
        three, options = (x, None, None), options._replace(average=True)
    if case == "masks":
        padding = torch.zeros(n, source, dtype=torch.bool)
        padding[1, 3:] = True
        mask = torch.randn(length, source, requires_grad=True)
        options = options._replace(average=False)
    if case == "dropout":
        options = options._replace(dropout_p=0.3, seed=torch.tensor(5))
    if case == "tokens first":
        three = tuple(y.detach().transpose(0, 1).requires_grad_() for y in (x, memory, memory))
        options = options._replace(tokens_first=True)
    if case == "ragged":
        three = tuple(y.detach().flatten(0, 1).requires_grad_() for y in (x, memory, memory))
        offsets = Offsets(torch.tensor([0, 3, 10]), torch.tensor([0, 9, 14]))
    module = MultiheadAttention(embed, heads, add_bias_kv=case == "extra keys", **more)
    tensors = module._tensors(three, (padding, mask), False)
    if more:
        tensors = module._placed(tensors, torch.float32, None, 1)
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in tensors._asdict().items()
        if isinstance(x, torch.nn.Parameter)
    }
    call = LayerCall(tensors._replace(**leaves), options, offsets)
    return *flat_layer(call), cache_elements(call)


@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "shared",
        "causal",
        "masks",
        "extra keys",
        "dropout",
        "tokens first",
        "ragged",
        "options",
    ],
)
def test_the_layer_s_operation_passes_pytorch_s_checks(case: str) -> None:
    opcheck(torch.ops.multihead.attention, arguments(case))


@pytest.mark.parametrize("case", ["plain", "causal", "mask", "dropout", "rules"])
def test_the_attention_s_operation_passes_pytorch_s_checks(case: str) -> None:
    q = torch.randn(2, 5, 3, 4).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(2, 3, 7, width, requires_grad=True) for width in (4, 6))
    mask = torch.randn(2, 1, 5, 7, requires_grad=True) if case == "mask" else None
    seed = torch.tensor(3) if case == "dropout" else None
    rules: dict[str, torch.Tensor] = {}
    if case == "rules":
        rules = {"sinks": torch.randn(3, requires_grad=True), "alibi_slopes": torch.rand(3)}
        rules |= {"query_positions": torch.tensor([0, 2]), "key_lengths": torch.tensor([7, 4])}
    options = AttentionOptions(
        "float32", case == "causal", 0.5, 0.3 * (case == "dropout"), seed, softcap=len(rules) / 2
    )
    call = AttentionCall(AttentionTensors(q, k, v, mask, **rules), options)
    opcheck(torch.ops.multihead.scaled_dot_product_attention, flat_attention(call))


def test_compiled_attention_computes_the_same_bits() -> None:
    compiled = torch.compile(scaled_dot_product_attention, fullgraph=True)
    q, k, v = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(3))
    mask = torch.randn(9, 9, requires_grad=True)
    outs = [call(q, k, v, mask) for call in (compiled, scaled_dot_product_attention)]
    assert torch.equal(*outs)
    pairs = [torch.autograd.grad(out.square().sum(), [q, k, v, mask]) for out in outs]
    for found, expected in zip(*pairs, strict=True):
        assert torch.equal(found, expected)
    assert torch.isfinite(compiled(q, k, v, dropout_p=0.4)).all()


@pytest.mark.filterwarnings("ignore:Lower right causal bias will produce NaNs:UserWarning")
@pytest.mark.parametrize("where", ["given", "made within"])
@pytest.mark.parametrize("sizes", [(5, 9), (9, 5), (7, 7), (1, 4)], ids=str)
@pytest.mark.parametrize("make", [causal_lower_right, causal_upper_left])
def test_a_mask_that_is_a_subclass_is_pytorch_s_compiled_too(
    make: Any, sizes: tuple[int, int], where: str
) -> None:
    q, k, v = (torch.randn(2, 3, n, 8) for n in (sizes[0], sizes[1], sizes[1]))
    bias = make(*sizes)

    def call(bias: Any) -> torch.Tensor:
        return scaled_dot_product_attention(
            q, k, v, make(*sizes) if where == "made within" else bias
        )

    compiled = torch.compile(call, backend="aot_eager")
    torch.testing.assert_close(compiled(bias), call(bias), equal_nan=True)


def shown(lengths: torch.Tensor) -> torch.Tensor:
    """Which tokens there are, as many as the longest sequence has."""
    return torch.arange(int(lengths.max().item())) < lengths[:, None]


@pytest.mark.parametrize("kind", ["padding", "cut", "attn_mask", "attention", "grouped"])
def test_lengths_that_only_the_run_knows_stay_in_one_graph(kind: str) -> None:
    module = MultiheadAttention(12, 3, batch_first=True)

    def call(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        there = shown(lengths)
        if kind == "padding":
            return module(x, x, x, ~there)[0]
        cut = x[:, : there.shape[1]]
        if kind == "cut":
            return module(cut, cut, cut, ~there, need_weights=False)[0]
        if kind == "attn_mask":
            return module(cut, x, x, attn_mask=~there.T[:, :1].expand(-1, x.shape[1]))[0]
        q = (x if kind == "attention" else cut).unflatten(2, (3, 4)).transpose(1, 2)
        k = q if kind == "attention" else q[:, :1]
        return scaled_dot_product_attention(q, k, k, there[:, None, None], enable_gqa=k is not q)

    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        x, lengths = torch.randn(3, 6, 12, requires_grad=True), torch.tensor([2, 6, 4])
        pairs = [(f(x, lengths), x) for f in (compiled, call)]
        grads = [torch.autograd.grad(out.square().sum(), x)[0] for out, x in pairs]
        assert torch.equal(pairs[0][0], pairs[1][0])
        assert torch.equal(*grads)
        if kind in ("padding", "attention"):
            with pytest.raises(RuntimeError):  # the mask has other keys than there are
                compiled(x, torch.tensor([2, 5, 4]))
