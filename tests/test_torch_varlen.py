"""`multihead.torch.varlen_attn`: each sequence has what it has by itself."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.nn.attention import varlen as theirs
from torch.nn.attention.varlen import AuxRequest
from torch.utils.flop_counter import FlopCounterMode

from multihead.arguments import AttentionOptions, AttentionTensors
from multihead.torch import scaled_dot_product_attention, varlen_attn
from multihead.torch.calls import AttentionCall
from multihead.torch.schema import flat_attention

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
ENDS_Q, ENDS_K = [0, 7, 7, 30, 31], [0, 9, 12, 41, 341]
LONGEST = 23, 300
WINDOWS = [(-1, -1), (-1, 0), (5, 0), (3, 2), (-1, 4)]
LSE = AuxRequest(lse=True)


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.name.encode()))


def drawn(dtype: torch.dtype = torch.float64) -> Three:
    shapes = (31, 6, 8), (341, 2, 8), (341, 2, 5)
    q, k, v = (torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)
    return q, k, v


def ends(dtype: torch.dtype = torch.int32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(ENDS_Q, dtype=dtype), torch.tensor(ENDS_K, dtype=dtype)


def attend(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return varlen_attn(q, k, v, *ends(), *LONGEST, enable_gqa=True, **options)


def one_by_one(
    inputs: Three, attend: Callable[..., Any], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, a sequence at a time: (Tq, H, Dv) and (H, Tq)."""
    outs, lses = [], []
    for n, (a, b, c, d) in enumerate(zip(ENDS_Q, ENDS_Q[1:], ENDS_K, ENDS_K[1:], strict=False)):
        q, k, v = (
            x[i:j].transpose(0, 1)[None]
            for x, i, j in zip(inputs, (a, c, c), (b, d, d), strict=True)
        )
        out, lse = attend(n, q, k, v, **options)
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, 1)


def ours(n: int, q: Any, k: Any, v: Any, window: Any, used: Any = None, **options: Any) -> Any:
    left, right = (None if x < 0 else x for x in window)
    return scaled_dot_product_attention(
        q,
        k,
        v,
        enable_gqa=True,
        window=(left, right),
        query_offset="end",
        key_lengths=None if used is None else used[n : n + 1],
        return_lse=True,
        **options,
    )


def pytorch_s(n: int, q: Any, k: Any, v: Any, window: Any) -> Any:
    """PyTorch's function with a mask of all scores; queries that see nothing get zeros."""
    length, keys = q.shape[2], k.shape[2]
    steps = torch.arange(keys) - (torch.arange(length)[:, None] + keys - length)
    left, right = (10**6 if x < 0 else x for x in window)
    seen = (steps >= -left) & (steps <= right)
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, seen | ~seen.any(-1, keepdim=True), enable_gqa=True
    )
    out = out.where(seen.any(-1, keepdim=True), 0.0)
    return out, torch.zeros(1, q.shape[1], length)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_agrees_with_pytorch_s_function_of_each_sequence(window: tuple[int, int]) -> None:
    inputs = drawn()
    out = attend(*inputs, window_size=window)
    expected, _ = one_by_one(inputs, pytorch_s, window=window)
    torch.testing.assert_close(out, expected)
    d_out = torch.randn_like(out)
    grads = (torch.autograd.grad(x, inputs, d_out) for x in (out, expected))
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_the_bits_of_each_sequence_by_itself(dtype: torch.dtype, window: tuple[int, int]) -> None:
    inputs = drawn(dtype)
    used = torch.tensor([9, 2, 29, 280], dtype=torch.int32)
    more: dict[str, Any] = {"softcap": 2.0, "sinks": torch.randn(6, dtype=dtype)}
    for seqused_k, options in ((None, {}), (used, {}), (used, more)):
        out, lse = attend(
            *inputs, window_size=window, seqused_k=seqused_k, return_aux=LSE, **options
        )
        expected = one_by_one(inputs, ours, window=window, used=seqused_k, **options)
        assert out.dtype == dtype
        assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        d_lse = torch.where(lse.isfinite(), torch.randn_like(lse), 0.0)
        d_results = torch.randn_like(out), d_lse
        grads = []
        for result in ((out, lse), expected):
            grads.append(torch.autograd.grad(result, inputs, d_results, retain_graph=True))
        assert torch.equal(out, expected[0])
        assert torch.equal(lse, expected[1])
        for mine, other in zip(*grads, strict=True):
            assert torch.equal(mine, other)
        with torch.no_grad():
            alone = attend(*inputs, window_size=window, seqused_k=seqused_k, **options)
            assert torch.equal(alone, out)


def test_one_tensor_of_offsets_and_either_integer() -> None:
    qkv = torch.randn(31, 3, 2, 8)
    q, k, v = qkv.unbind(1)  # a view of projections
    (small, _), (large, _) = ends(), ends(torch.int64)
    out = varlen_attn(q, k, v, small, small, 23, 23, window_size=(-1, 0))
    assert torch.equal(varlen_attn(q, k, v, large, large, 23, 23, window_size=(-1, 0)), out)
    assert torch.equal(varlen_attn(q, k, v, small, small.clone(), 1, 1, window_size=(-1, 0)), out)
    strided = torch.tensor([ENDS_Q, ENDS_Q]).t()[:, 0]
    assert torch.equal(varlen_attn(q, k, v, strided, strided, 23, 23, window_size=(-1, 0)), out)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", [{}, {"window_size": (2, 1), "softcap": 2.0}], ids=str)
def test_first_and_second_derivatives(options: dict[str, Any]) -> None:
    of_q, of_k = torch.tensor([0, 2, 2, 4]), torch.tensor([0, 2, 5, 8])

    def call(*tensors: torch.Tensor) -> Any:
        return varlen_attn(
            *tensors[:3],
            of_q,
            of_k,
            2,
            3,
            enable_gqa=True,
            sinks=tensors[3],
            return_aux=LSE,
            **options,
        )

    shapes = (4, 2, 3), (8, 1, 3), (8, 1, 2), (2,)
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.timeout(120)
def test_compiled_it_computes_the_same_bits() -> None:
    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    options: dict[str, Any] = {"window_size": (5, 0), "return_aux": LSE, "softcap": 3.0}
    inputs = drawn()
    options["sinks"] = torch.randn(6, dtype=torch.float64, requires_grad=True)
    results = [call(*inputs, **options) for call in (compiled, attend)]
    leaves = (*inputs, options["sinks"])
    d_out = torch.randn_like(results[0][0])
    grads = [torch.autograd.grad(x[0], leaves, d_out) for x in results]
    for mine, other in zip((*results[0], *grads[0]), (*results[1], *grads[1]), strict=True):
        assert torch.equal(mine, other)
    assert torch.isfinite(compiled(*inputs, dropout_p=0.4)).all()


def test_the_operation_passes_pytorch_s_checks() -> None:
    of_q, of_k = ends(torch.int64)
    q, k, v = drawn(torch.float32)
    sinks = torch.randn(6, requires_grad=True)
    tensors = AttentionTensors(q, k, v, sinks=sinks, query_offsets=of_q, key_offsets=of_k)
    options = AttentionOptions("float32", True, 0.5, 0.0, None)
    operation = torch.ops.multihead.scaled_dot_product_attention
    opcheck(operation, flat_attention(AttentionCall(tensors, options)))


def test_dropout_draws_for_each_call_and_from_pytorch_s_generator() -> None:
    q, k, v = drawn()
    torch.manual_seed(3)
    first, second = (attend(q, k, v, dropout_p=0.5) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    again = attend(q, k, v, dropout_p=0.5)
    assert torch.equal(first, again)
    d_out = torch.randn_like(first)
    grads = torch.autograd.grad(first, (q, k, v), d_out)
    twice = torch.autograd.grad(again, (q, k, v), d_out, create_graph=True)
    for x, y in zip(grads, twice, strict=True):
        torch.testing.assert_close(x, y)


def test_autocast_and_transforms() -> None:
    q, k, v = drawn(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k.bfloat16(), v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attend(q, k, v), atol=5e-2, rtol=5e-2)
    many = torch.stack([q.detach(), 2 * q.detach()])
    mapped = torch.func.vmap(lambda x: attend(x, k.detach(), v.detach()))(many)
    torch.testing.assert_close(mapped[1], attend(2 * q, k, v))


def test_operations_that_it_takes_are_counted() -> None:
    q, k, v = (x.detach() for x in drawn())
    with FlopCounterMode(display=False) as counted:
        attend(q, k, v)
    pairs = sum(
        (b - a) * (d - c)
        for a, b, c, d in zip(ENDS_Q, ENDS_Q[1:], ENDS_K, ENDS_K[1:], strict=False)
    )
    assert counted.get_total_flops() == 2 * 6 * pairs * (8 + 5)


def test_parameters_and_results_are_those_of_pytorch_s_function() -> None:
    mine, others = (inspect.signature(f).parameters for f in (varlen_attn, theirs.varlen_attn))
    assert list(mine)[: len(others)] == list(others)
    for name, parameter in others.items():
        assert mine[name].default == parameter.default
        assert mine[name].kind == parameter.kind
    q = torch.randn(31, 2, 8)
    of_q, _ = ends()
    _, lse = varlen_attn(q, q, q, of_q, of_q, 23, 23, return_aux=LSE)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (q, q, q, of_q, of_q)]
        _, expected = theirs.varlen_attn(*fakes, 23, 23, return_aux=LSE)
    assert lse.shape == expected.shape == (2, 31)
    assert isinstance(
        varlen_attn(q, q, q, of_q, of_q, 23, 23, return_aux=AuxRequest()), torch.Tensor
    )


def test_tensors_elsewhere_are_pytorch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(theirs, "varlen_attn", lambda *_, **options: given.update(options))
    x, of_q = torch.randn(31, 2, 8, device="meta"), torch.tensor(ENDS_Q, device="meta")
    varlen_attn(x, x, x, of_q, of_q, 23, 23, window_size=(4, 0), scale=0.5)
    assert given["window_size"] == (4, 0)
    assert given["scale"] == 0.5
    with pytest.raises(ValueError, match=r"^query: expected a plain tensor in CPU memory"):
        varlen_attn(x, x, x, of_q, of_q, 23, 23, softcap=2.0)


def test_pages_are_refused_with_the_way_to_gather_them() -> None:
    """Three sequences in pages of four tokens, in any order; the error's own words are run."""
    pages = torch.tensor([[5, 1], [0, 3], [2, 4]])
    k, v = torch.randn(2, 6, 4, 2, 8).unbind()
    q, of_q = torch.randn(3, 2, 8), torch.arange(4)
    used = torch.tensor([7, 3, 8])
    with pytest.raises(ValueError, match=r"^block_table: expected None .*gather them") as error:
        varlen_attn(q, k, v, of_q, None, 1, 8, seqused_k=used, block_table=pages)
    assert "key[block_table].flatten(0, 2)" in str(error.value)
    of_k = torch.arange(4) * pages.shape[1] * k.shape[1]
    gathered = (x[pages].flatten(0, 2) for x in (k, v))
    out = varlen_attn(q, *gathered, of_q, of_k, 1, 8, seqused_k=used)
    for n, length in enumerate(used.tolist()):
        keys, values = (x[pages[n]].flatten(0, 1)[:length].transpose(0, 1) for x in (k, v))
        expected = scaled_dot_product_attention(q[n][:, None], keys, values)
        torch.testing.assert_close(out[n], expected[:, 0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"query": torch.zeros(31, 48)}, r"query: expected \(total, H, D\), got \(31, 48\)"),
        ({"query": torch.zeros(31, 4, 8).int()}, r"query: expected float32, .*, got int32"),
        ({"key": torch.zeros(31, 4, 9)}, r"key: expected \(Tk, 4, 8\), got \(31, 4, 9\)"),
        ({"key": torch.zeros(31, 2, 8)}, r"key: .*\(enable_gqa=True lets"),
        ({"key": torch.zeros(31, 4, 8).double()}, r"key: expected float32, got float64"),
        ({"value": torch.zeros(30, 4, 8)}, r"value: expected \(31, 4, Dv\), got \(30, 4, 8\)"),
        ({"cu_seq_q": torch.tensor([0, 30])}, r"cu_seq_q: expected a rising run from 0 to 31"),
        ({"cu_seq_q": torch.tensor([0, 9, 5, 31])}, r"cu_seq_q: expected a rising run"),
        ({"cu_seq_q": torch.tensor([0.0, 31.0])}, r"cu_seq_q: expected int32 or int64"),
        ({"cu_seq_q": [0, 31]}, r"cu_seq_q: expected a tensor of integers"),
        ({"cu_seq_q": torch.tensor([[0, 31]])}, r"cu_seq_q: expected \(N \+ 1,\), got \(1, 2\)"),
        ({"cu_seq_k": torch.tensor([0, 7, 31])}, r"cu_seq_k: expected \(2,\), got \(3,\)"),
        ({"cu_seq_k": None}, r"cu_seq_k: expected a tensor of integers"),
        ({"window_size": (1, 2, 3)}, r"window_size: expected \(left, right\)"),
        ({"seqused_k": torch.tensor([40])}, r"key_lengths: expected from 0 to 31, got 40"),
        ({"seqused_k": torch.tensor([4, 5])}, r"key_lengths: expected \(1,\), got \(2,\)"),
        ({"sinks": torch.zeros(3)}, r"sinks: expected \(4,\), got \(3,\)"),
        ({"alibi_slopes": torch.zeros(5)}, r"alibi_slopes: expected \(4,\) or \(1, 4\)"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], match: str) -> None:
    x, whole = torch.randn(31, 4, 8), torch.tensor([0, 31])
    given: dict[str, Any] = {"query": x, "key": x, "value": x}
    given |= {"cu_seq_q": whole, "cu_seq_k": whole.clone(), "max_q": 31, "max_k": 31}
    varlen_attn(**given)
    with pytest.raises((ValueError, TypeError), match=f"^{match}"):
        varlen_attn(**given | change)


def test_offsets_are_checked_compiled_too() -> None:
    x = torch.randn(31, 4, 8)
    compiled = torch.compile(varlen_attn, backend="eager", fullgraph=True)
    ends = torch.tensor([0, 9, 20, 31])
    compiled(x, x, x, ends, ends, 22, 22)
    for wrong in ([0, 9, 20, 30], [0, 20, 9, 31], [1, 9, 20, 31]):
        for given in ((torch.tensor(wrong), ends), (ends, torch.tensor(wrong))):
            with pytest.raises(ValueError, match="offsets that rise from 0 to 31"):
                compiled(x, x, x, *given, 22, 22)


def test_it_is_a_leaf_of_a_graph() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, of_q: torch.Tensor) -> Any:
            return varlen_attn(x, x, x, of_q, of_q, 23, 23, window_size=(-1, 0))

    x, (of_q, _) = torch.randn(31, 2, 8), ends()
    assert torch.equal(torch.fx.symbolic_trace(Model())(x, of_q), Model()(x, of_q))
