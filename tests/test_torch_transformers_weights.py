"""Weights that Hugging Face's models ask for, and masks of their heads: as their eager function."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from tolerance import TORCH, assert_close, tolerance
from transformers_models import Layer, attend, bert, lively, llama, padded, registration, words

KINDS = ["none", "bool", "float"]


@pytest.fixture(autouse=True)
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register, from a state of PyTorch's generator that the test's name gives."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    with registration():
        yield


def problem(
    kind: str, groups: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor | None, ...]:
    """Query, key, value and mask; some query may see nothing but its first key."""
    query = torch.randn(2, 7, 6, 5, dtype=dtype).transpose(1, 2)
    key, value = torch.randn(2, 2, 6 // groups, 11, 5, dtype=dtype).unbind()
    mask = None
    if kind != "none":
        mask = torch.rand(2, 1, 7, 11) < 0.6
        mask[..., 0] = True
    if kind == "float":
        mask = torch.randn(2, 1, 7, 11, dtype=dtype).masked_fill(~mask, -torch.inf)
    return query, key, value, mask


def theirs(
    module: Any, query: Any, key: Any, value: Any, mask: Any, head_mask: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' eager function, and its head mask of before version 5."""
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    out, weights = eager_attention_forward(module, query, key, value, mask, scaling=5**-0.5)
    if head_mask is not None:
        weights = weights * head_mask
        values = value.repeat_interleave(module.num_key_value_groups, 1)
        out = (weights @ values).transpose(1, 2).contiguous()
    return out, weights


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [False, True])
def test_weights_and_their_gradients(kind: str, groups: int, heads: bool) -> None:
    module = Layer(groups, False).eval()
    given = problem(kind, groups)
    d_out, d_weights = torch.randn(2, 7, 6, 5).double(), torch.randn(2, 6, 7, 11).double()
    shape = (2, 6, 1, 1) if kind == "bool" else (1, 6, 7, 1)
    head_mask = torch.rand(shape, dtype=torch.float64) if heads else None
    results = []
    for function, options in ((attend, {"output_attentions": True}), (theirs, {})):
        leaves = [
            None if x is None else x.detach().clone().requires_grad_(x.is_floating_point())
            for x in (*given, head_mask)
        ]
        out, weights = function(module, *leaves[:4], head_mask=leaves[4], **options)
        assert weights is not None
        ((out * d_out).sum() + (weights * d_weights).sum()).backward()
        grads = [x.grad for x in leaves if x is not None and x.requires_grad]
        results.append([out.detach(), weights.detach(), *grads])
    for i, (found, expected) in enumerate(zip(*results, strict=True)):
        # eager's weights are a softmax in float32, whatever the dtype
        assert_close(found.numpy(), expected.numpy(), tolerance(TORCH, "float32"), str(i))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_has_the_bits_of_a_call_without_weights(kind: str, dtype: torch.dtype) -> None:
    given = problem(kind, 2, dtype)
    plain, none = attend(Layer(2, True), *given)
    out, weights = attend(Layer(2, True), *given, output_attentions=True)
    assert none is None
    assert torch.equal(out, plain)
    assert weights is not None
    assert weights.dtype == dtype
    assert weights.shape == (2, 6, 7, 11)
    sums = weights.double().sum(-1)
    assert_close(sums.numpy(), torch.ones_like(sums).numpy(), 1e-5 if dtype.itemsize > 2 else 1e-2)


def test_dropped_weights_are_those_that_were_applied() -> None:
    query, key, value, _ = problem("none", 2)
    for training in (False, True):
        torch.manual_seed(3)
        q = query.clone().requires_grad_(training)
        out, weights = attend(
            Layer(2, False), q, key, value, None, dropout=0.4, output_attentions=True
        )
        assert 0.2 < float((weights == 0).double().mean()) < 0.6
        applied = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
        assert_close(out.detach().numpy(), applied.detach().numpy(), 1e-12)
        torch.manual_seed(3)
        plain, _ = attend(Layer(2, False), query, key, value, None, dropout=0.4)
        assert_close(out.detach().numpy(), plain.numpy(), 1e-12)  # of the same seed


def test_rules_beside_weights() -> None:
    query, key, value, _ = problem("none", 1)
    rules = {"softcap": 1.5, "sinks": torch.randn(6), "sliding_window": 4}
    plain, _ = attend(Layer(1, True), query, key, value, None, **rules)
    out, weights = attend(Layer(1, True), query, key, value, None, output_attentions=True, **rules)
    assert torch.equal(out, plain)
    assert ((weights > 0).sum(-1) <= 4).all()
    assert (weights.sum(-1) < 1).all()  # the rest is the sink's
    assert_close(out.numpy(), (weights @ value).transpose(1, 2).numpy(), 1e-12)


@pytest.mark.parametrize("make", [bert, llama])
def test_models_that_are_asked_for_weights(make: Any) -> None:
    model, ids, mask = lively(make(), torch.float32), words(), padded("right")
    assert mask is not None
    found = {}
    for name in ("eager", "multihead"):
        model.set_attn_implementation(name)
        found[name] = model(ids, attention_mask=mask, output_attentions=True).attentions
    assert len(found["multihead"]) == 2
    for x, y in zip(found["multihead"], found["eager"], strict=True):
        rows = mask[:, None, :, None]
        assert_close((x * rows).detach().numpy(), (y * rows).detach().numpy(), 1e-5)
    assert model(ids, attention_mask=mask).get("attentions") is None


def test_generation_gives_the_weights_of_each_step() -> None:
    model, ids = lively(llama(), torch.float32), words()
    steps = {}
    for name in ("eager", "multihead"):
        model.set_attn_implementation(name)
        steps[name] = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=3,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        ).attentions
    assert len(steps["multihead"]) == 3
    for found, expected in zip(steps["multihead"], steps["eager"], strict=True):
        for x, y in zip(found, expected, strict=True):
            assert_close(x.numpy(), y.numpy(), 1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_weights_are_compiled_without_breaks() -> None:
    torch._dynamo.reset()
    given, module = problem("bool", 2), Layer(2, False)

    def both(*tensors: Any) -> Any:
        return attend(module, *tensors, output_attentions=True)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for x, y in zip(compiled(*given), both(*given), strict=True):
            assert_close(x.numpy(), y.numpy(), 1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize("shape", [(6,), (2, 6), (1, 6, 1, 1), (2, 1, 7, 1)])
def test_a_mask_of_heads_without_weights(shape: tuple[int, ...]) -> None:
    given, head_mask = problem("bool", 3), torch.rand(shape).double()
    found, weights = attend(Layer(3, False), *given, head_mask=head_mask)
    assert weights is None
    four = head_mask if len(shape) == 4 else head_mask.reshape(-1, 6, 1, 1)
    expected, _ = theirs(Layer(3, False).eval(), *given, four)
    assert_close(found.numpy(), expected.numpy(), tolerance(TORCH, "float32"))


@pytest.mark.parametrize("shape", [(5,), (3, 6), (2, 6, 7, 11), (1, 2, 6, 1, 1)])
def test_a_mask_of_heads_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"head_mask: expected \(6,\), .* use|implementation="
    ) as e:
        attend(Layer(3, False), *problem("none", 3), head_mask=torch.ones(shape))
    assert str(shape) in str(e.value)


def test_weights_of_what_the_engine_does_not_compute() -> None:
    x = torch.ones(2, 3, 5, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"output_attentions: expected .* got int32"):
        attend(Layer(1, False), x, x, x, None, output_attentions=True)


def test_packed_sequences_have_masks_of_heads_and_no_weights() -> None:
    query, key, value, _ = problem("none", 3)
    query, key, value = query[:1], key[:1, :, :7], value[:1, :, :7]
    options = {"cu_seq_lens_q": torch.tensor([0, 3, 7], dtype=torch.int32)}
    head_mask = torch.rand(6).double()
    plain, _ = attend(Layer(3, True), query, key, value, None, **options)
    found, _ = attend(Layer(3, True), query, key, value, None, head_mask=head_mask, **options)
    assert_close(found.numpy(), (plain * head_mask[:, None]).numpy(), 1e-12)
    with pytest.raises(ValueError, match="no output_attentions of packed sequences"):
        attend(Layer(3, True), query, key, value, None, output_attentions=True, **options)


def test_weights_under_autocast() -> None:
    given = problem("bool", 2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, _ = attend(Layer(2, False), *given)
        out, weights = attend(Layer(2, False), *given, output_attentions=True)
    assert weights is not None
    assert out.dtype == weights.dtype == torch.bfloat16
    assert torch.equal(out, plain)
