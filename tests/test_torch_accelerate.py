"""`accelerate` and `restore`: whole models on the engine and back."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import ml_dtypes
import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune

from multihead.torch import MultiheadAttention, accelerate, restore
from tolerance import CANCELLED, FORWARD, assert_close, tolerance

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]


def encoder(**options: Any) -> torch.nn.TransformerEncoder:
    how = {"batch_first": True, "dtype": torch.float64} | options
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0, **how)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=not how.get("norm_first"))


def close(found: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    assert_close(found.detach().numpy(), expected.detach().numpy(), 1e-11, name)


def calls_of(model: torch.nn.Module) -> list[int]:
    """Count the calls of our module, without a hook of its own."""
    calls: list[int] = []
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            inner = module.forward
            module.forward = lambda *a, inner=inner, **k: (calls.append(1), inner(*a, **k))[1]
    return calls


OPTIONS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "no bias": {"bias": False},
    "tokens first": {"batch_first": False},
}


@pytest.mark.parametrize("mask", ["none", "padding", "causal", "both"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_an_encoder_computes_the_same(options: str, training: bool, mask: str) -> None:
    theirs = encoder(**OPTIONS[options]).train(training)
    ours = copy.deepcopy(theirs)
    assert accelerate(ours) == 2
    calls = calls_of(ours)
    n, length = 3, 7
    x = torch.randn(n, length, 12, dtype=torch.float64)
    if options == "tokens first":
        x = x.transpose(0, 1)
    given: dict[str, Any] = {}
    if mask in ("padding", "both"):
        given["src_key_padding_mask"] = torch.arange(length) >= torch.tensor([[7], [4], [2]])
    if mask in ("causal", "both"):
        given["mask"] = torch.ones(length, length, dtype=torch.bool).triu(1)
    grads = torch.randn_like(x)
    outs = []
    with torch.set_grad_enabled(training):
        for model in (ours, theirs):
            out = model(x, **given)
            if given.get("src_key_padding_mask") is not None and options != "tokens first":
                out = out.masked_fill(given["src_key_padding_mask"][..., None], 0.0)
            outs.append(out)
            if training:
                (out * grads).sum().backward()
    close(*outs)
    assert len(calls) == 2
    if training:
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            close(p.grad, q.grad, name)


@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_computes_the_same(training: bool) -> None:
    theirs = torch.nn.Transformer(12, 2, 2, 2, 24, 0.0, batch_first=True, dtype=torch.float64)
    theirs.train(training)
    ours = copy.deepcopy(theirs)
    assert accelerate(ours) == 6
    source = torch.randn(3, 9, 12, dtype=torch.float64)
    target = torch.randn(3, 7, 12, dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    padding = torch.arange(9) >= torch.tensor([[9], [4], [6]])
    given = {"tgt_mask": mask, "tgt_is_causal": True, "memory_key_padding_mask": padding}
    given["src_key_padding_mask"] = padding
    grads = torch.randn_like(target)
    with torch.set_grad_enabled(training):
        outs = [model(source, target, **given) for model in (ours, theirs)]
    close(*outs)
    if training:
        for out in outs:
            (out * grads).sum().backward()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            close(p.grad, q.grad, name)


def test_everything_stays_the_same_object() -> None:
    model = encoder()
    modules, params = list(model.modules()), list(model.parameters())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert accelerate(model) == 2
    assert accelerate(model) == 0
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(a is b for a, b in zip(params, model.parameters(), strict=True))
    assert list(model.state_dict()) == list(before)
    assert all(type(layer.self_attn) is MultiheadAttention for layer in model.layers)
    model(torch.randn(2, 5, 12, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert any(not torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert restore(model) == 2
    assert restore(model) == 0
    assert all(type(x.self_attn) is torch.nn.MultiheadAttention for x in model.layers)
    assert not any(m._forward_hooks for m in model.modules())
    assert "_multihead" not in " ".join(model.layers[0].self_attn.__dict__)


def test_layers_with_a_forward_of_their_own_are_left_alone() -> None:
    class Own(torch.nn.MultiheadAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class Derived(torch.nn.MultiheadAttention):
        pass

    model = torch.nn.ModuleList([Own(8, 2), Derived(8, 2, batch_first=True)])
    assert accelerate(model) == 1
    assert type(model[0]) is Own
    assert isinstance(model[1], Derived)
    assert isinstance(model[1], MultiheadAttention)
    x = torch.randn(2, 5, 8)
    found = model[1](x, x, x)[0]
    assert restore(model) == 1
    assert type(model[1]) is Derived
    assert_close(found.detach().numpy(), model[1](x, x, x)[0].detach().numpy(), 1e-6)


def test_parametrized_layers_are_computed_with_what_their_parameters_are() -> None:
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    parametrizations.weight_norm(module, "in_proj_weight")
    parametrizations.weight_norm(module.out_proj, "weight")
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    results = []
    for change in (lambda m: 0, accelerate):
        change(module)
        module.zero_grad()
        out, _ = module(x, x, x)
        out.square().sum().backward()
        results.append([out, *(p.grad.clone() for p in module.parameters())])
    assert isinstance(module, MultiheadAttention)
    for expected, found in zip(*results, strict=True):
        close(found, expected)


def test_hooks_fire_inside_pytorch_s_layers() -> None:
    model = encoder().eval()
    accelerate(model)
    fired: list[str] = []
    attention = model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda *_: fired.append("before"))
    attention.register_forward_hook(lambda *_: fired.append("after"))
    with torch.no_grad():
        model(torch.randn(2, 5, 12, dtype=torch.float64))
    assert fired == ["before", "after"]


def test_a_module_put_into_pytorch_s_layer_is_called_in_eval() -> None:
    layer = torch.nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=True).eval()
    layer.self_attn = MultiheadAttention(12, 2, batch_first=True)
    calls = calls_of(layer)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[1] = True
    with torch.no_grad():
        out = layer(torch.randn(2, 5, 12), src_key_padding_mask=hidden)
    assert calls == [1]
    assert torch.isfinite(out).all()
    layer.self_attn.out_proj = torch.nn.Sequential(layer.self_attn.out_proj)
    with torch.no_grad():
        layer(torch.randn(2, 5, 12))
    assert calls == [1, 1]


def test_an_accelerated_model_is_copied_pickled_and_saved() -> None:
    model = encoder().eval()
    accelerate(model)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    expected = model(x)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    loaded = encoder().eval()
    loaded.load_state_dict(torch.load(stored))
    close(loaded(x), expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
        assert restore(other) == 2
        close(other(x), expected)


def test_it_goes_where_the_model_goes() -> None:
    model = encoder(dtype=torch.float32)
    accelerate(model)
    x = torch.randn(2, 5, 12)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        out = model.to(dtype)(x.to(dtype))
        assert out.dtype == dtype
        assert torch.isfinite(out).all()
    assert model.to("meta")(x.to("meta").double()).device.type == "meta"


def test_anything_but_a_module_is_an_error() -> None:
    for change in (accelerate, restore):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got list"):
            change([torch.nn.MultiheadAttention(8, 2)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    theirs = encoder(dtype=torch.float32)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    x = torch.randn(3, 7, 12)
    exact = copy.deepcopy(theirs).double()(x.double())
    errors = []
    for model in (ours, theirs):
        with torch.autocast("cpu", dtype):
            out = model(x)
            attended, weights = model.layers[0].self_attn(x, x, x)
        assert (attended.dtype, weights.dtype) == (dtype, dtype)
        out.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        errors.append((out.double() - exact).abs().max().item())
    assert errors[0] < 1.5 * errors[1] + 1e-3


def test_autocast_takes_inputs_and_masks_of_several_dtypes() -> None:
    ours = MultiheadAttention(12, 3, batch_first=True)
    x, mask = torch.randn(2, 7, 12), torch.randn(7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = ours(x.bfloat16(), x, x, attn_mask=mask)
        alone, _ = ours(*[x.bfloat16()] * 3, attn_mask=mask.bfloat16(), need_weights=False)
    assert out.dtype == alone.dtype == torch.bfloat16
    expected = ours(x.bfloat16().float(), x, x, attn_mask=mask)[0]
    bound = 2 * tolerance(FORWARD, ml_dtypes.bfloat16)
    assert_close(out.detach().float().numpy(), expected.detach().numpy(), bound)


def test_training_follows_the_same_losses() -> None:
    theirs = encoder()
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    x, y = torch.randn(2, 8, 7, 12, dtype=torch.float64)
    losses: list[list[float]] = []
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        curve = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "kind", ["TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer"]
)
def test_pytorch_s_own_samples(kind: str, training: bool) -> None:
    from torch.testing._internal.common_modules import module_db

    info = next(i for i in module_db if i.module_cls is getattr(torch.nn, kind))
    dtype = torch.float64
    samples = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=training, training=training
    )
    count = 0
    for sample in samples:
        made, call = sample.constructor_input, sample.forward_input
        theirs = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
        for module in theirs.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = 0.0
        ours = copy.deepcopy(theirs)
        assert accelerate(ours) > 0
        results = []
        for model in (ours, theirs):
            with torch.set_grad_enabled(training):
                out = model(*call.args, **call.kwargs)
            results.append([out])
            if training:
                grad = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
                results[-1] += torch.autograd.grad(out, list(model.parameters()), grad)
        for found, expected in zip(*results, strict=True):
            # where a gradient cancels, its terms are about as large as one
            a, b = found.detach().numpy(), expected.detach().numpy()
            assert_close(a, b, 1e-11, scale=CANCELLED)
        count += 1
    assert count > 0


def test_layers_that_were_made_as_ours_become_pytorch_s() -> None:
    model = torch.nn.Sequential(MultiheadAttention(8, 2), torch.nn.MultiheadAttention(8, 2))
    x = torch.randn(5, 3, 8)
    expected = model[0](x, x, x)[0].detach()
    assert accelerate(model) == 1
    assert restore(model) == 2
    assert [type(m) for m in model] == [torch.nn.MultiheadAttention] * 2
    assert_close(model[0](x, x, x)[0].detach().numpy(), expected.numpy(), 1e-6)
    assert not model[0].out_proj._forward_hooks


def test_a_forward_put_on_a_layer_is_called_and_not_counted() -> None:
    model = torch.nn.ModuleList([torch.nn.MultiheadAttention(8, 2) for _ in range(2)])
    inner = model[0].forward
    model[0].forward = lambda *args, **options: (inner(*args, **options)[0] + 1, None)
    x = torch.randn(5, 3, 8)
    expected = model[0](x, x, x)[0]
    assert accelerate(model) == 1
    assert type(model[0]) is torch.nn.MultiheadAttention
    assert torch.equal(model[0](x, x, x)[0], expected)


class Reader(torch.nn.Module):
    """Holds a layer for its parameters, as speech models do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        torch.nn.init.ones_(self.attention.in_proj_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        q, k, v = torch.nn.functional.linear(x, weight, bias).chunk(3, -1)
        return self.attention.out_proj(
            torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        )


class Caller(Reader):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0] * self.attention.in_proj_bias.sum()


def test_layers_that_are_never_called_are_not_counted() -> None:
    model = torch.nn.ModuleDict({"reads": Reader(), "calls": Caller()})
    with pytest.warns(UserWarning, match=r"Reader reads .* never calls it.*: reads\.attention$"):
        assert accelerate(model) == 1
    assert type(model["reads"].attention) is torch.nn.MultiheadAttention
    assert type(model["calls"].attention) is MultiheadAttention


def test_changing_nothing_is_said() -> None:
    with pytest.warns(UserWarning, match=r"changed nothing: .* in Linear; .*explain\(model\)"):
        assert accelerate(torch.nn.Linear(3, 3)) == 0


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.5

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x / 1.5


class Derived(torch.nn.MultiheadAttention):
    pass


def changes(where: str) -> dict[str, tuple[Any, Any]]:
    """What may be done to a weight, and undone."""
    module, name = ("", "in_proj_weight") if where == "inner" else ("out_proj", "weight")

    def at(change: Any, *rest: Any) -> Any:
        return lambda m: change(m.get_submodule(module), name, *rest)

    return {
        "parametrize": (
            lambda m: parametrize.register_parametrization(m.get_submodule(module), name, Scaled()),
            at(parametrize.remove_parametrizations),
        ),
        "weight_norm": (
            at(parametrizations.weight_norm),
            at(parametrize.remove_parametrizations),
        ),
        "spectral_norm": (
            at(parametrizations.spectral_norm),
            at(parametrize.remove_parametrizations),
        ),
        "prune": (
            lambda m: prune.l1_unstructured(m.get_submodule(module), name, 0.3),
            at(prune.remove),
        ),
    }


@pytest.mark.parametrize("kind", [torch.nn.MultiheadAttention, Derived])
@pytest.mark.parametrize("where", ["inner", "outer"])
@pytest.mark.parametrize("change", ["parametrize", "weight_norm", "spectral_norm", "prune"])
def test_any_order_of_changes(change: str, where: str, kind: type[Any]) -> None:
    apply, remove = changes(where)[change]
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    made = kind(8, 2, batch_first=True, dtype=torch.float64)
    for order in set(itertools.permutations(["apply", "remove", "accelerate", "restore"])):
        if order.index("remove") < order.index("apply"):
            continue
        theirs, module = copy.deepcopy(made), copy.deepcopy(made)
        ours = False
        for step in order:
            for state in (theirs, module):
                torch.manual_seed(3)
                if step == "apply":
                    apply(state)
                elif step == "remove":
                    remove(state)
            if step == "accelerate":
                assert accelerate(module) == 1
                ours = True
            elif step == "restore":
                assert restore(module) == ours
                ours = False
            for state in (theirs, module):
                state.eval()  # spectral_norm's vectors stay as they are
            assert isinstance(module, MultiheadAttention) == ours
            assert module.state_dict().keys() == theirs.state_dict().keys()
            # PyTorch cannot copy what is pruned
            for call in (module, *([] if change == "prune" else [copy.deepcopy(module)])):
                close(call(x, x, x)[0], theirs(x, x, x)[0], f"{order} at {step}")
        if ours:
            assert restore(module) == 1
        assert type(module) is kind


def test_parametrizations_of_both_at_once_are_removed_one_by_one() -> None:
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    parametrizations.weight_norm(module, "in_proj_weight")
    accelerate(module)
    parametrize.register_parametrization(module, "in_proj_bias", Scaled())
    x = torch.randn(2, 5, 8)
    expected = module(x, x, x)[0]
    parametrize.remove_parametrizations(module, "in_proj_weight")
    assert_close(module(x, x, x)[0].detach().numpy(), expected.detach().numpy(), 1e-6)
    assert restore(module) == 1
    parametrize.remove_parametrizations(module, "in_proj_bias")
    assert type(module) is torch.nn.MultiheadAttention
    assert_close(module(x, x, x)[0].detach().numpy(), expected.detach().numpy(), 1e-6)
