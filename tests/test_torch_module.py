"""`multihead.torch.MultiheadAttention` in the place of PyTorch's own."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from magnitudes import magnitudes
from multihead import reference
from multihead.torch import MultiheadAttention
from tolerance import CANCELLED, TORCH, assert_close, tolerance

BOUND = {torch.float32: tolerance(TORCH, "float32"), torch.float64: tolerance(TORCH, "float64")}


def pair(*args: Any, **kwargs: Any) -> tuple[torch.nn.MultiheadAttention, MultiheadAttention]:
    """PyTorch's module and ours, with the same parameters."""
    theirs = torch.nn.MultiheadAttention(*args, **kwargs)
    ours = MultiheadAttention(*args, **kwargs)
    for name, p in theirs.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(p)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    return theirs, ours


def step(module: Any, inputs: list[torch.Tensor], grads: Any, **options: Any) -> dict[str, Any]:
    """Output, weights and every gradient of one call."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    floats = {
        name: x.detach().clone().requires_grad_()
        for name, x in options.items()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
    }
    module.zero_grad()
    out, weights = module(*leaves, **(options | floats))
    d_out, d_weights = grads
    loss = (out * d_out).sum()
    if weights is not None:
        loss = (
            loss
            + (
                weights
                * d_weights[: weights.shape[0]].reshape(-1)[: weights.numel()].view_as(weights)
            ).sum()
        )
    loss.backward()
    found: dict[str, Any] = {"out": out.detach(), "weights": weights}
    found |= {f"input {i}": x.grad for i, x in enumerate(leaves)}
    found |= {name: x.grad for name, x in floats.items()}
    return found | {name: p.grad.clone() for name, p in module.named_parameters()}


def agree(ours: dict[str, Any], theirs: dict[str, Any], bound: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        if x is None:
            assert ours[name] is None, name
            continue
        assert ours[name].shape == x.shape, name
        assert ours[name].dtype == x.dtype, name
        assert_close(ours[name].detach().numpy(), x.detach().numpy(), bound, name)


CONFIGURATIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "other widths": {"kdim": 5, "vdim": 9},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}
MASKS = ("none", "bool 2-D", "float 2-D", "bool 3-D", "float 3-D")
LAYOUTS = ("tokens first", "batch first", "unbatched")


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
@pytest.mark.parametrize("weights", ["no weights", "average", "per head"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_option_agrees_with_pytorch(configuration: str, layout: str, weights: str) -> None:
    n, length, s, embed, heads = 3, 7, 6, 12, 3
    how: dict[str, Any] = CONFIGURATIONS[configuration]
    for mask, padding in itertools.product(MASKS, ("none", "bool", "float")):
        dtype = torch.float64
        theirs, ours = pair(embed, heads, batch_first=layout == "batch first", dtype=dtype, **how)

        def tensor(tokens: int, width: int) -> torch.Tensor:
            shape = {
                "tokens first": (tokens, n, width),
                "batch first": (n, tokens, width),
                "unbatched": (tokens, width),
            }[layout]
            return torch.randn(shape, dtype=dtype)  # noqa: B023

        options: dict[str, Any] = {
            "need_weights": weights != "no weights",
            "average_attn_weights": weights == "average",
        }
        items = 1 if layout == "unbatched" else n
        if mask != "none":
            shape = (length, s) if "2" in mask else (items * heads, length, s)
            hidden = torch.rand(shape) < 0.3
            hidden[..., 0] = False
            floats = torch.randn(shape, dtype=dtype).masked_fill(hidden, -math.inf)
            options["attn_mask"] = hidden if "bool" in mask else floats
        if padding != "none":
            shape = (s,) if layout == "unbatched" else (n, s)
            hidden = torch.rand(shape) < 0.3
            hidden[..., 0] = False
            floats = torch.randn(shape, dtype=dtype).masked_fill(hidden, -math.inf)
            options["key_padding_mask"] = hidden if padding == "bool" else floats
        inputs = [tensor(length, embed), tensor(s, ours.kdim), tensor(s, ours.vdim)]
        grads = torch.randn_like(inputs[0]), torch.randn((items, 1000), dtype=dtype)
        agree(
            step(ours, inputs, grads, **options),
            step(theirs, inputs, grads, **options),
            BOUND[dtype],
        )


@pytest.mark.parametrize("embed", [16, 96])
def test_one_tensor_for_everything_in_float32(embed: int) -> None:
    theirs, ours = pair(embed, 4, batch_first=True)
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(2, 150, embed)
    grads = torch.randn_like(x), torch.randn(2, 150 * 150)

    def once(module: Any, x: torch.Tensor, grads: Any) -> dict[str, Any]:
        x = x.clone().requires_grad_()
        module.zero_grad()
        out, weights = module(x, x, x)
        ((out * grads[0]).sum() + (weights * grads[1].view_as(weights)).sum()).backward()
        found = {"out": out, "weights": weights, "x": x.grad}
        return found | {name: p.grad.clone() for name, p in module.named_parameters()}

    wide = once(exact, x.double(), [g.double() for g in grads])
    for name, found in once(ours, x, grads).items():
        assert_close(
            found.detach().numpy(), wide[name].detach().numpy(), BOUND[torch.float32], name
        )


@pytest.mark.parametrize("how", [{}, {"kdim": 5, "vdim": 9}, {"add_bias_kv": True}])
def test_it_begins_as_pytorch_s_does(how: dict[str, Any]) -> None:
    torch.manual_seed(5)
    theirs = torch.nn.MultiheadAttention(12, 3, **how)
    after = torch.rand(3)
    torch.manual_seed(5)
    ours = MultiheadAttention(12, 3, **how)
    assert torch.equal(after, torch.rand(3))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, x in theirs.state_dict().items():
        assert torch.equal(x, ours.state_dict()[name])
    assert isinstance(ours, torch.nn.MultiheadAttention)


@pytest.mark.parametrize("how", [{}, {"kdim": 5, "vdim": 9}, {"add_bias_kv": True, "bias": False}])
def test_state_dicts_go_both_ways(how: dict[str, Any]) -> None:
    theirs, ours = torch.nn.MultiheadAttention(12, 3, **how), MultiheadAttention(12, 3, **how)
    for source, target in ((ours, theirs), (theirs, ours)):
        for p in source.parameters():
            torch.nn.init.normal_(p)
        target.load_state_dict(source.state_dict(), strict=True)
        assert list(target.state_dict()) == list(source.state_dict())
        for name, x in source.state_dict().items():
            assert torch.equal(x, target.state_dict()[name])
    incomplete = {name: x for name, x in theirs.state_dict().items() if name != "out_proj.weight"}
    failures = []
    for module in (theirs, ours):
        with pytest.raises(RuntimeError) as failure:
            module.load_state_dict(incomplete)
        failures.append(str(failure.value))
    assert failures[0] == failures[1]


def test_a_module_pickled_long_ago_is_completed() -> None:
    ours = MultiheadAttention(12, 3)
    state = ours.__dict__.copy()
    del state["_qkv_same_embed_dim"]
    other = MultiheadAttention.__new__(MultiheadAttention)
    other.__setstate__(state)
    x = torch.randn(5, 2, 12)
    assert torch.equal(other(x, x, x)[0], ours(x, x, x)[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept(mode: Any) -> None:
    theirs, ours = pair(12, 3, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    expected = theirs(x, x, x)
    with mode():
        found = ours(x, x, x)
    for a, b in zip(found, expected, strict=True):
        assert a.grad_fn is None
        assert not a.requires_grad
        assert_close(a.numpy(), b.detach().numpy(), BOUND[torch.float64])


def test_changing_an_input_that_pytorch_keeps_is_an_error() -> None:
    for kind in (torch.nn.MultiheadAttention, MultiheadAttention):
        module = kind(12, 3)  # batch-first it keeps a copy
        x = torch.randn(7, 2, 12)
        out, _ = module(x, x, x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_is_causal_alone_is_a_causal_mask() -> None:
    theirs, ours = pair(12, 3, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1)
    for module in (theirs, ours):
        module.train()
    expected = theirs(x, x, x, attn_mask=mask)
    for options in ({"is_causal": True}, {"is_causal": True, "attn_mask": mask}):
        for found, want in zip(ours(x, x, x, **options), expected, strict=True):
            assert_close(found.detach().numpy(), want.detach().numpy(), BOUND[torch.float64])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_a_query_with_nothing_to_see_gets_zeros(weights: bool, training: bool) -> None:
    ours = MultiheadAttention(8, 2, batch_first=True).train(training)
    x = torch.randn(2, 5, 8, requires_grad=True)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[1] = True
    out, found = ours(x, x, x, key_padding_mask=hidden, need_weights=weights)
    assert torch.equal(out[1], ours.out_proj.bias.expand(5, 8))
    assert found is None or not found[1].any()
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[1].any()


def test_dropout_follows_pytorch_s_generator() -> None:
    ours = MultiheadAttention(12, 3, dropout=0.4, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.manual_seed(3)
    first, weights = ours(x, x, x, average_attn_weights=False)
    second, _ = ours(x, x, x)
    torch.manual_seed(3)
    again, _ = ours(x, x, x, need_weights=False)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    dropped = (weights == 0).double().mean()
    assert 0.3 < dropped < 0.5
    assert torch.equal(ours.eval()(x, x, x)[0], ours(x, x, x)[0])


def test_checkpointing_sees_the_same_dropout() -> None:
    from torch.utils.checkpoint import checkpoint

    ours = MultiheadAttention(12, 3, dropout=0.4, batch_first=True, dtype=torch.float64)
    grads = []
    for through in (False, True):
        torch.manual_seed(3)
        x = torch.linspace(-1, 1, 2 * 9 * 12, dtype=torch.float64).view(2, 9, 12).requires_grad_()

        def attend(x: torch.Tensor) -> torch.Tensor:
            return ours(x, x, x, need_weights=False)[0]

        out = checkpoint(attend, x, use_reentrant=False) if through else attend(x)
        out.square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("mask", ["none", "float", "bool"])
def test_first_and_second_derivatives(mask: str, dropout: float) -> None:
    ours = MultiheadAttention(
        4, 2, dropout=dropout, batch_first=True, add_bias_kv=True, add_zero_attn=True
    ).double()
    inputs = [torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3)]
    attn_mask: Any = None
    if mask == "float":
        attn_mask = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    if mask == "bool":
        attn_mask = torch.tensor([[True, False, False], [True, True, True]])
    names = [name for name, _ in ours.named_parameters()]
    params = [p.detach().clone().requires_grad_() for p in ours.parameters()]

    def call(*tensors: Any) -> Any:
        torch.manual_seed(1)
        *x, m = tensors[: len(inputs) + 1]
        named = dict(zip(names, tensors[len(inputs) + 1 :], strict=True))
        options = {"attn_mask": m, "is_causal": True, "average_attn_weights": False}
        return torch.func.functional_call(ours, named, tuple(x), options)

    assert torch.autograd.gradcheck(call, (*inputs, attn_mask, *params))
    assert torch.autograd.gradgradcheck(call, (*inputs, attn_mask, *params))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_function_transforms_go_through_pytorch_s_operations() -> None:
    theirs, ours = pair(12, 3, batch_first=True, dtype=torch.float64)
    x = torch.randn(4, 2, 5, 12, dtype=torch.float64)
    tangent = torch.randn_like(x[0])

    def attend(module: Any) -> Any:
        return lambda x: module(x, x, x)[0]

    every = torch.stack([attend(theirs)(item) for item in x])
    assert_close(torch.vmap(attend(ours))(x).detach().numpy(), every.detach().numpy(), 1e-12)
    found = torch.func.jvp(attend(ours), (x[0],), (tangent,))[1]
    step = 1e-6
    with torch.no_grad():
        slope = (attend(ours)(x[0] + step * tangent) - attend(ours)(x[0] - step * tangent)) / (
            2 * step
        )
    assert_close(found.detach().numpy(), slope.numpy(), 1e-7)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_under_vmap(randomness: str) -> None:
    ours = MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
    x = torch.randn(1, 2, 5, 12).expand(4, 2, 5, 12)

    def each(x: torch.Tensor) -> torch.Tensor:
        return ours(x, x, x, average_attn_weights=False)[1]

    attend = torch.vmap(each, randomness=randomness)
    weights = attend(x)
    assert 0.3 < (weights == 0).double().mean() < 0.7
    assert torch.equal(weights[0], weights[1]) == (randomness == "same")


@pytest.mark.parametrize("shape", [(3, 4, 7, 6), (1, 4, 7, 6), (3, 1, 1, 6), (1, 1, 7, 1)], ids=str)
@pytest.mark.parametrize("extra", [False, True])
def test_a_mask_of_four_axes_is_broadcast(shape: tuple[int, ...], extra: bool) -> None:
    ours = MultiheadAttention(12, 4, batch_first=True, add_bias_kv=extra).double()
    x, memory = torch.randn(3, 7, 12).double(), torch.randn(3, 6, 12).double()
    mask = torch.randn(shape, dtype=torch.float64)
    hidden = torch.rand(shape) < 0.3
    for given in (mask, hidden.logical_and(torch.arange(shape[3]) > 0)):
        whole = given.expand(3, 4, 7, 6)
        results = []
        for m in (given, whole.reshape(12, 7, 6)):
            m = m.clone()
            if m.is_floating_point():
                m.requires_grad_()
            out, weights = ours(x, memory, memory, attn_mask=m)
            (out.square().sum() + weights.square().sum()).backward()
            results.append((out, weights, m.grad))
        for found, expected in zip(*[r[:2] for r in results], strict=True):
            assert_close(found.detach().numpy(), expected.detach().numpy(), 1e-12)
        found, expected = (r[2] for r in results)
        if found is not None:
            axes = [i for i in range(4) if shape[i] == 1]
            summed = expected.view(3, 4, 7, 6).sum(axes, keepdim=True) if axes else expected
            scale = float(expected.abs().sum() / found.numel())  # one column for all: cancels
            assert_close(found.numpy(), summed.view(shape).numpy(), 1e-12, scale=scale)


def test_it_is_copied_pickled_and_moved() -> None:
    ours = MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    expected = ours(x, x, x)[0]
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x, x, x)[0], expected)
    away = ours.to("meta")
    assert away(*[x.to("meta")] * 3)[0].shape == x.shape


def test_an_out_proj_of_another_kind_is_called() -> None:
    theirs, ours = pair(8, 2, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    expected = theirs(x, x, x)[0].detach()
    calls: list[Any] = []
    handle = ours.out_proj.register_forward_hook(lambda *arguments: calls.append(1))
    assert_close(ours(x, x, x)[0].detach().numpy(), expected.numpy(), 1e-12)
    assert calls == [1]
    handle.remove()
    ours(x, x, x)
    assert calls == [1]

    class Low(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    ours.out_proj = Low(ours.out_proj)
    assert_close(ours(x, x, x)[0].detach().numpy(), 2 * expected.numpy(), 1e-12)
    ours(x, x, x)[0].sum().backward()
    assert ours.out_proj.inner.weight.grad is not None


WRONG: dict[str, Any] = {
    "four axes": {"query": (1, 2, 3, 8)},
    "widths": {"query": (2, 5, 7)},
    "key and value": {"value": (2, 4, 8)},
    "mixed ranks": {"key": (5, 8)},
    "mask shape": {"attn_mask": torch.zeros(3, 3)},
    "mask dtype": {"attn_mask": torch.zeros(5, 5, dtype=torch.int64)},
    "padding shape": {"key_padding_mask": torch.zeros(2, 9, dtype=torch.bool)},
    "padding dtype": {"key_padding_mask": torch.zeros(2, 5, dtype=torch.uint8)},
    "dtype": {"query": torch.zeros(2, 5, 8, dtype=torch.float64)},
    "3-D mask": {"attn_mask": torch.zeros(3, 5, 5)},
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_are_pytorch_s(what: str) -> None:
    theirs, ours = pair(8, 2, batch_first=True)
    given = dict.fromkeys(("query", "key", "value"), torch.randn(2, 5, 8))
    for name, value in WRONG[what].items():
        given[name] = torch.randn(value) if isinstance(value, tuple) else value
    failures = []
    for module in (theirs, ours):
        with pytest.raises((AssertionError, RuntimeError, ValueError)) as failure:
            module(**given)
        failures.append((failure.type, str(failure.value)))
    assert failures[0] == failures[1]


def conditions(module: Any, call: Any, results: dict[str, Any]) -> tuple[dict[str, float], float]:
    """How large a sample's gradients would be if nothing cancelled, and its largest score."""
    params = {name: p.detach().numpy() for name, p in module.named_parameters()}
    result = reference.forward(
        params,
        *(x.detach().numpy()[None] for x in call.args[:3]),
        num_heads=module.num_heads,
        add_zero_attn=module.add_zero_attn,
        **{
            name: x.detach().numpy()[None]
            for name, x in call.kwargs.items()
            if name in ("attn_mask", "key_padding_mask") and x is not None
        },
    )
    d_out, d_weights = 2 * results["out"][None], 2 * results["weights"][None]
    scores = result.core.q @ result.core.k.swapaxes(2, 3) * result.core.scale
    return magnitudes(result, d_out, d_weights), float(np.abs(scores).max())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore")
def test_pytorch_s_own_samples(dtype: torch.dtype, gradients: bool, training: bool) -> None:
    from torch.testing._internal.common_modules import module_db

    info = next(i for i in module_db if i.module_cls is torch.nn.MultiheadAttention)
    samples = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=gradients, training=training
    )
    count = 0
    for sample in samples:
        made, call = sample.constructor_input, sample.forward_input
        theirs = torch.nn.MultiheadAttention(*made.args, **made.kwargs).to(dtype).train(training)
        ours = MultiheadAttention(*made.args, **made.kwargs).to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict())

        def results(module: Any) -> dict[str, Any]:
            width = module.out_proj.weight.dtype
            tensors = [
                x.detach().to(width, copy=True).requires_grad_(x.requires_grad)
                if isinstance(x, torch.Tensor)
                else x
                for x in call.args  # noqa: B023
            ]
            torch.manual_seed(0)
            out, weights = module(*tensors, **call.kwargs)  # noqa: B023
            found = {"out": out, "weights": weights}
            if gradients:
                (out.square().sum() + weights.square().sum()).backward()
                inputs = zip(("query", "key", "value"), tensors, strict=False)
                found |= {name: x.grad for name, x in inputs}
                found |= {name: p.grad for name, p in module.named_parameters()}
            return {name: x.detach().numpy() for name, x in found.items() if x is not None}

        found = results(ours)
        if training and made.kwargs.get("dropout", 0):
            continue  # other random numbers
        expected = results(theirs.double())
        assert found.keys() == expected.keys()
        # The samples' scores are large. What rounds off a score, relative to its size, is in the
        # exponent of its probability; and where the softmax is all but one-hot, gradients cancel.
        sizes, largest = conditions(theirs, call, expected)
        bound = BOUND[dtype] * max(1.0, largest / 10)
        for name, x in expected.items():
            scale = CANCELLED * sizes.get(name, 0.0)
            assert_close(found[name], x, bound, name, scale=scale)
        count += 1
    assert count >= 32


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("batch", "first", "way"),
    [
        (2, 2, r"pass attn_mask\[:, None\] of each sequence$"),
        (2, 3, r"pass attn_mask\[None\] of each head$"),
        (3, 3, r"of each sequence or attn_mask\[None\] of each head$"),
    ],
)
def test_a_mask_for_each_sequence_or_head_says_the_way(
    batch: int, first: int, way: str, batch_first: bool
) -> None:
    module = MultiheadAttention(12, 3, batch_first=batch_first)
    q, k = torch.randn(batch, 5, 12), torch.randn(batch, 7, 12)
    if not batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    mask = torch.randn(first, 5, 7)
    with pytest.raises(RuntimeError, match=rf"got \({first}, 5, 7\).*" + way):
        module(q, k, k, attn_mask=mask)
    given = mask[:, None] if first == batch else mask[None]
    assert module(q, k, k, attn_mask=given)[0].shape == q.shape
