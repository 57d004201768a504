"""Our attention function as Hugging Face's models call it, against transformers' own."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

import multihead.torch.hugging_face as ours
from tolerance import TORCH, assert_close, tolerance
from transformers_models import Layer, attend, registration

OUTPUT = tolerance(TORCH, "float32")


@pytest.fixture(autouse=True)
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register, from a state of PyTorch's generator that the test's name gives."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    with registration():
        yield


LENGTHS = [(1, 1), (1, 9), (7, 7), (5, 9), (9, 5)]


KINDS = ["none", "bool", "bool per head", "float", "float per head"]


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_function_is_transformers_own(kind: str, lengths: tuple[int, int], groups: int) -> None:
    n, heads, d, dv = 2, 6, 5, 7
    length, s = lengths
    options = itertools.product((None, True, False), (None, True, False), (None, 0.3), (0, 1, 2))
    for of_module, of_call, scale, of_bias in options:
        module = Layer(groups, of_module)
        # tokens before heads in memory, as projections leave them; or not
        query = torch.randn(n, length, heads, d, dtype=torch.float64).transpose(1, 2)
        if scale is None:
            query = query.contiguous()
        key = torch.randn(n, s, heads // groups, d, dtype=torch.float64).transpose(1, 2)
        value = torch.randn(n, s, heads // groups, dv, dtype=torch.float64).transpose(1, 2)
        mask = bias = None
        if kind != "none":
            mask = torch.rand(n, heads if "head" in kind else 1, length, s) < 0.7
            mask[..., 0] = True
            if "float" in kind:
                mask = torch.randn(mask.shape).double().masked_fill(~mask, -torch.inf)
        if of_bias:
            bias = torch.randn(of_bias, heads, length, s, dtype=torch.float64)
        d_out = torch.randn(n, length, heads, dv, dtype=torch.float64)
        results = []
        for function in (attend, sdpa_attention_forward):
            leaves = [
                None if x is None else x.detach().clone().requires_grad_(x.is_floating_point())
                for x in (query, key, value, mask, bias)
            ]
            out, weights = function(
                module,
                *leaves[:4],
                scaling=scale,
                is_causal=of_call,
                position_bias=leaves[4],
                dropout=0.0,
            )
            assert weights is None
            assert out.is_contiguous()
            out.backward(d_out)
            gradients = [x.grad for x in leaves if x is not None and x.requires_grad]
            results.append([out.detach(), *gradients])
        case = f"{of_module} {of_call} {scale} {of_bias}"
        # with one key in sight the gradients of scores are nothing but rounding
        for i, (found, expected) in enumerate(zip(*results, strict=True)):
            assert_close(found.numpy(), expected.numpy(), 1e-12, f"{i}: {case}", scale=1.0)


def test_a_mask_may_be_longer_than_the_keys() -> None:
    query, key, value = torch.randn(3, 2, 6, 5, 4).unbind()
    mask = torch.rand(2, 1, 5, 9) < 0.7
    mask[..., 0] = True
    found = attend(Layer(1, True), query, key, value, mask)[0]
    assert torch.equal(found, attend(Layer(1, True), query, key, value, mask[..., :5])[0])


@pytest.mark.parametrize("shape", [(0, 6, 5, 4), (0, 6, 1, 4), (2, 6, 0, 4)])
def test_nothing_to_compute(shape: tuple[int, ...]) -> None:
    key = torch.randn(shape[0], 2, 9, 4)
    out, _ = attend(Layer(3, True), torch.randn(shape), key, key, None)
    assert out.shape == (shape[0], shape[2], 6, 4)


def test_queries_that_all_sequences_share() -> None:
    for length in (1, 5):
        query, module = torch.randn(1, 6, length, 4), Layer(3, False)
        key, value = torch.randn(2, 3, 2, 9, 4).unbind()
        mask = torch.rand(3, 6, length, 9) < 0.7
        mask[..., 0] = True
        found = attend(module, query, key, value, mask)[0]
        expected = sdpa_attention_forward(module, query.expand(3, -1, -1, -1), key, value, mask)[0]
        assert_close(found.numpy(), expected.numpy(), OUTPUT)


def test_dropout_drops_its_share_of_the_weights() -> None:
    n, heads, length = 2, 6, 40
    query, key = torch.zeros(2, n, heads, length, 5)
    value = torch.eye(length).expand(n, heads, length, length)
    out, _ = attend(torch.nn.Module(), query, key, value, None, dropout=0.25, is_causal=False)
    dropped = float((out == 0).double().mean())
    assert 0.22 < dropped < 0.28
    assert torch.allclose(out[out != 0], torch.tensor(1 / length / 0.75))


@pytest.mark.parametrize("option", ["indices", "block_indices"])
def test_what_is_not_computed_is_refused(option: str) -> None:
    x = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match=f"does not support {option}"):
        attend(Layer(1, True), x, x, x, None, **{option: torch.ones(2)})
    with pytest.raises(ValueError, match=f"does not support {option}"):  # nor passed over elsewhere
        attend(Layer(1, True), *[x.to("meta")] * 3, None, **{option: torch.ones(2)})
    found = attend(Layer(1, True), x, x, x, None, **{option: None}, use_cache=True)[0]
    assert torch.equal(found, attend(Layer(1, True), x, x, x, None)[0])


def test_what_no_mask_shows_is_refused_elsewhere() -> None:
    x = torch.randn(1, 2, 5, 4, device="meta")
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool, device="meta")
    ends = torch.tensor([0, 2, 5])
    for options in ({"cu_seq_lens_q": ends}, {"cu_seq_lens_k": ends}):
        with pytest.raises(ValueError, match="from the attention mask, and there is none"):
            attend(Layer(1, True), x, x, x, None, **options)
        attend(Layer(1, True), x, x, x, mask, **options)
    attend(Layer(1, True), x, x, x, None, cu_seq_lens_q=ends[[0, 2]])


@pytest.mark.parametrize("option", ["softcap", "s_aux", "sinks", "head_mask"])
def test_what_only_the_engine_computes_is_refused_elsewhere(option: str) -> None:
    x = torch.randn(1, 2, 5, 4, device="meta")
    with pytest.raises(ValueError, match=f"does not support {option}"):
        attend(Layer(1, True), x, x, x, None, **{option: torch.ones(2)})


@pytest.mark.parametrize("length", [9, 1])
def test_a_window_that_no_mask_shows(length: int) -> None:
    q, k, v = (torch.randn(2, 2, n, 4) for n in (length, 9, 9))
    steps = torch.arange(9) - torch.arange(9 - length, 9)[:, None]
    mask = (steps <= 0) & (steps > -4)
    found = attend(Layer(1, True), q, k, v, None, sliding_window=4)[0]
    expected = attend(Layer(1, True), q, k, v, mask[None, None])[0]
    assert_close(found.numpy(), expected.numpy(), OUTPUT)


def test_other_devices_have_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("ours was called")

    given: list[Any] = []

    def theirs(*args: Any, **options: Any) -> Any:
        given.append((args, options))
        return sdpa_attention_forward(*args, **options)

    monkeypatch.setattr(ours, "scaled_dot_product_attention", never)
    AttentionInterface.register("sdpa", theirs)
    module = Layer(3, True)
    query = torch.randn(2, 6, 5, 4, device="meta")
    key, value = torch.randn(2, 2, 2, 9, 4, device="meta").unbind()
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool, device="meta")
    options = {"dropout": 0.3, "scaling": 0.5, "is_causal": False, "sliding_window": 4}
    out, weights = attend(module, query, key, value, mask, **options)
    assert out.device.type == "meta"
    assert out.shape == (2, 5, 6, 4)
    assert weights is None
    args, passed = given[0]
    assert args[:2] == (module, query)
    assert args[4] is mask
    assert passed == options | {"position_bias": None}
