"""Layers and attention whose sequences are shared by ranks, beside one process's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import multihead as mh
from multihead.distributed import Alone, Communicator, ContextParallel, threads
from multihead.torch import (
    MultiheadAttention,
    accelerate,
    context_parallel_attention,
    parallel,
    restore,
    scaled_dot_product_attention,
)

pytestmark = pytest.mark.timeout(60)

N, E, H, L, S = 2, 24, 6, 29, 23
SECONDS = 20.0  # that a rank waits
BOUND = 1e-6
Result = dict[str, torch.Tensor]


def assert_near(found: Result, expected: Result, bound: float = BOUND) -> None:
    """Whether all is there, and near, of the largest entry."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].shape == x.shape, name
        largest = max(float(x.abs().max()), 1e-2) if x.numel() else 1.0
        difference = float((found[name] - x).abs().max()) if x.numel() else 0.0
        assert difference <= bound * largest, f"{name}: {difference / largest:.1e}"


def in_threads(size: int, program: Callable[[Communicator], Any]) -> list[Any]:
    return threads.run(size, program, timeout=SECONDS)


# ------------------------------------------------------------------------------- the function


def tensors_of(dtype: torch.dtype, key_heads: int = H) -> Result:
    made = {
        "query": torch.randn(N, H, L, 8),
        "key": torch.randn(N, key_heads, S, 8),
        "value": torch.randn(N, key_heads, S, 5),
        "mask": torch.randn(1, H, L, S),
        "row": torch.randn(N, 1, 1, S),
        "sinks": torch.randn(H),
        "d_out": torch.randn(N, H, L, 5),
        "d_lse": torch.randn(N, H, L),
    }
    return {name: x.to(dtype) for name, x in made.items()}


def solved(given: Result, attend: Callable[..., Any], has: set[str], **options: Any) -> Result:
    """Results and gradients of a call."""
    asked = {name: x for name, x in given.items() if name in {"query", "key", "value"} | has}
    leaves = {name: x.clone().requires_grad_() for name, x in asked.items()}
    inputs = [leaves[name] for name in ("query", "key", "value")]
    rest = {"attn_mask": leaves.get("mask", leaves.get("row")), "sinks": leaves.get("sinks")}
    out = attend(*inputs, **rest, **options)
    found: Result = {}
    loss = torch.zeros((), dtype=given["query"].dtype)
    if options.get("return_lse"):
        out, found["lse"] = out
        loss = loss + (found["lse"] * given["d_lse"]).sum()
    found["out"] = out
    (loss + (out * given["d_out"]).sum()).backward()
    found |= {f"d_{name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return {name: x.detach() for name, x in found.items()}


def together(parallel: ContextParallel, found: Result) -> Result:
    """Put parts together, and add up what all ranks have a gradient of."""
    for name, x in found.items():
        if name == "d_sinks" or x.shape[-2] == 1:
            parallel.sum(x.numpy())
        else:
            found[name] = parallel.gather(x, 2)
    return found


AXES = {"query": 2, "key": 2, "value": 2, "mask": 2, "d_out": 2, "d_lse": 2}
CALLS: dict[str, tuple[set[str], dict[str, Any]]] = {
    "plain": (set(), {}),
    "causal": (set(), {"is_causal": True, "return_lse": True}),
    "mask": ({"mask"}, {"scale": 0.3}),
    "row": ({"row"}, {}),
    "sinks": ({"sinks"}, {"window": (7, 3), "softcap": 2.0}),
}


@pytest.mark.parametrize("scheme", ["ring", "all_to_all"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_function_and_its_gradients(call: str, scheme: Any, dtype: torch.dtype) -> None:
    has, options = CALLS[call]
    given = tensors_of(dtype)
    expected = solved(given, scaled_dot_product_attention, has, **options)

    def program(ranks: Communicator) -> Result:
        parallel = ContextParallel(ranks, scheme, "zigzag")
        own = {k: parallel.shard(x, AXES[k]) if k in AXES else x for k, x in given.items()}
        found = solved(own, context_parallel_attention, has, parallel=parallel, **options)
        return together(parallel, found)

    for found in in_threads(3, program):
        assert_near(found, expected)


def test_half_precision_and_autocast() -> None:
    given = tensors_of(torch.float32)

    def program(ranks: Communicator) -> Result:
        parallel = ContextParallel(ranks)
        own = {k: parallel.shard(x, AXES[k]) if k in AXES else x for k, x in given.items()}
        with torch.autocast("cpu", torch.bfloat16):
            cast = solved(own, context_parallel_attention, set(), parallel=parallel)
        half = {k: x.bfloat16() for k, x in own.items()}
        plain = solved(half, context_parallel_attention, set(), parallel=parallel)
        assert cast["out"].dtype == plain["out"].dtype == torch.bfloat16
        assert cast["d_key"].dtype == torch.float32
        assert torch.equal(cast["out"], plain["out"])
        return {k: parallel.gather(x, 2).float() for k, x in plain.items()}

    half = {k: x.bfloat16() for k, x in given.items()}
    expected = {k: x.float() for k, x in solved(half, scaled_dot_product_attention, set()).items()}
    for found in in_threads(2, program):
        assert_near(found, expected, 2**-7)


def test_changes_in_place_are_seen() -> None:
    def program(ranks: Communicator) -> None:
        x = torch.randn(1, 2, 5, 4, requires_grad=True)
        key = x * 2
        out = context_parallel_attention(x, key, x, parallel=ContextParallel(ranks))
        key.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()

    in_threads(2, program)


def test_results_may_change_in_place() -> None:
    def program(ranks: Communicator) -> bool:
        x = torch.randn(1, 2, 5, 4, requires_grad=True)
        parallel = ContextParallel(ranks)
        context_parallel_attention(x, x, x, parallel=parallel).sum().backward()
        first, x.grad = x.grad, None
        out = context_parallel_attention(x, x, x, parallel=parallel)
        out.mul_(1.0).add_(3)
        out.sum().backward()
        return torch.equal(first, x.grad)

    assert in_threads(2, program) == [True, True]


def test_a_transposed_input_of_the_same_memory() -> None:
    x = torch.randn(1, 2, 6, 6)

    def gradients(attend: Callable[..., Any]) -> torch.Tensor:
        q = x.clone().requires_grad_()
        attend(q, q.transpose(2, 3), q).sum().backward()
        return q.grad

    def program(ranks: Communicator) -> torch.Tensor:
        parallel = ContextParallel(ranks)
        return gradients(lambda *qkv: context_parallel_attention(*qkv, parallel=parallel))

    expected = gradients(scaled_dot_product_attention)
    assert_near({"x": in_threads(1, program)[0]}, {"x": expected})


@pytest.mark.parametrize("scheme", ["ring", "all_to_all"])
def test_checkpoints_keep_nothing(scheme: Any) -> None:
    given = tensors_of(torch.float32)

    def program(ranks: Communicator) -> bool:
        parallel = ContextParallel(ranks, scheme)
        own = {k: parallel.shard(x, AXES[k]) if k in AXES else x for k, x in given.items()}

        def attend(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
            return context_parallel_attention(*inputs, parallel=parallel, **options)

        def again(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
            found: torch.Tensor = checkpoint(attend, *inputs, use_reentrant=False, **options)
            return found

        held: list[int] = []

        def pack(x: torch.Tensor) -> torch.Tensor:
            held.append(x.numel())
            return x.clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            hooked = solved(own, attend, {"mask", "sinks"})
        first = solved(own, attend, {"mask", "sinks"})
        second = solved(own, again, {"mask", "sinks"})
        return all(
            torch.equal(x, second[k]) and torch.equal(x, hooked[k]) for k, x in first.items()
        ) and bool(held)

    assert all(in_threads(2, program))


def test_dropout_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    given, has, options = tensors_of(torch.float64), {"mask", "sinks"}, {"dropout_p": 0.3}
    seed = torch.randint(2**63 - 1, ())
    with monkeypatch.context() as patch:
        patch.setattr("multihead.torch.dispatch._draw_seed", lambda: seed)
        expected = solved(given, scaled_dot_product_attention, has, **options)
    patched = "multihead.torch.context_parallel.drawn_seed"
    monkeypatch.setattr(patched, lambda parallel: int(seed))

    def program(ranks: Communicator) -> Result:
        parallel = ContextParallel(ranks, "ring", "zigzag")
        own = {k: parallel.shard(x, AXES[k]) if k in AXES else x for k, x in given.items()}
        found = solved(own, context_parallel_attention, has, parallel=parallel, **options)
        return together(parallel, found)

    for found in in_threads(3, program):
        assert_near(found, expected)


def test_rank_0_draws_the_seed() -> None:
    x = torch.randn(1, 2, 40, 4)

    def program(ranks: Communicator) -> torch.Tensor:
        parallel = ContextParallel(ranks)
        part = parallel.shard(x, 2)
        out = context_parallel_attention(part, part, part, None, 0.4, parallel=parallel)
        return parallel.gather(out, 2)

    first, again = in_threads(3, program), in_threads(3, program)
    assert all(torch.equal(x, first[0]) for x in first)
    assert not torch.equal(first[0], again[0])


REFUSED: dict[str, tuple[Callable[[torch.Tensor, ContextParallel], Any], Any, str]] = {
    "device": (lambda x, p: [x, x.to("meta"), x, None, p], ValueError, "key: expected a dense"),
    "array": (lambda x, p: [x, x, x.detach().numpy(), None, p], TypeError, "value: expected a ten"),
    "mask": (lambda x, p: [x, x, x, torch.zeros(3, 3), p], ValueError, "attn_mask: expected a sh"),
    "parallel": (lambda x, p: [x, x, x, None, p.communicator], TypeError, "parallel: expected a C"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, error, message = REFUSED[case]

    def program(ranks: Communicator) -> None:
        x = torch.randn(1, 2, 5, 4, requires_grad=True)
        query, key, value, mask, parallel = make(x, ContextParallel(ranks))
        with pytest.raises(error, match=message):
            context_parallel_attention(query, key, value, mask, parallel=parallel)

    in_threads(2, program)


def test_transforms_and_second_derivatives_are_refused() -> None:
    def program(ranks: Communicator) -> None:
        parallel = ContextParallel(ranks)
        x = torch.randn(1, 2, 5, 4, requires_grad=True)

        def attend(x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = context_parallel_attention(x, x, x, parallel=parallel)
            return found

        with pytest.raises(ValueError, match="outside of function transforms"):
            torch.func.grad(lambda x: attend(x).sum())(x.detach())
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(attend(x).sum(), x, create_graph=True)
        out = attend(x)
        with pytest.raises(ValueError, match="one gradient at a time"):
            torch.autograd.grad(out, x, torch.ones(3, *out.shape), is_grads_batched=True)

    in_threads(1, program)


# -------------------------------------------------------------------------------- the layer

ROPE = mh.Rope(scaling={"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 16})
LAYERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "plain": ({}, set()),
    "causal": ({"bias": False}, {"causal"}),
    "tokens first": ({"batch_first": False}, {"causal", "padding"}),
    "rope": ({"rope": ROPE, "num_kv_heads": 2}, {"causal"}),
    "rope, interleaved": ({"rope": mh.Rope(layout="interleaved", dims=2)}, {"cross"}),
    "padding": ({"sinks": True}, {"padding"}),
    "float padding": ({}, {"float padding", "mask"}),
    "masks": ({"softcap": 1.5}, {"padding", "mask", "causal"}),
    "float mask": ({"alibi": True}, {"float mask"}),
    "mask of heads": ({}, {"mask of heads", "padding"}),
    "window": ({"window": (5, 2), "kdim": 7, "vdim": 9}, {"cross"}),
    "zero key": ({"add_zero_attn": True}, {"mask"}),
    "zero key, sinks": ({"add_zero_attn": True, "sinks": True, "softcap": 1.0}, set()),
    "bias key": ({"add_bias_kv": True, "softcap": 2.0}, {"causal", "padding"}),
    "both": ({"add_bias_kv": True, "add_zero_attn": True, "num_kv_heads": 3}, {"mask"}),
    "unbatched": ({}, {"unbatched", "padding"}),
}


def layer_of(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> MultiheadAttention:
    layer = MultiheadAttention(E, H, **{"batch_first": True, "dtype": dtype} | options)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(0, 0.5)
    return layer


def inputs_of(layer: MultiheadAttention, has: set[str], dtype: torch.dtype) -> Result:
    """Query, key, value, masks and the gradient of the output, batch first."""
    keys = S if "cross" in has else L
    made = {"query": torch.randn(N, L, E), "d_out": torch.randn(N, L, E)}
    if "cross" in has:
        made |= {"key": torch.randn(N, S, layer.kdim), "value": torch.randn(N, S, layer.vdim)}
    if "mask" in has:
        made["attn_mask"] = torch.rand(L, keys) < 0.3
    if "float mask" in has:
        made["attn_mask"] = torch.randn(N, 1, L, keys)
    if "mask of heads" in has:
        made["attn_mask"] = torch.rand(N * H, L, keys) < 0.3
    if "padding" in has:
        made["key_padding_mask"] = torch.rand(N, keys) < 0.3
    if "float padding" in has:
        made["key_padding_mask"] = torch.randn(N, keys)
    if "unbatched" in has:
        names = ("query", "key_padding_mask", "d_out")
        made |= {name: made[name][0] for name in names if name in made}
    return {k: x if x.dtype == torch.bool else x.to(dtype) for k, x in made.items()}


def passed(layer: MultiheadAttention, given: Result, has: set[str]) -> Result:
    """The output of a layer, and the gradients of all that it was given, batch first."""
    turn = not layer.batch_first and given["query"].dim() == 3
    leaves = {
        k: x.clone().requires_grad_(x.is_floating_point() and k != "key_padding_mask")
        for k, x in given.items()
        if k != "d_out"
    }
    three = [leaves.get(k, leaves["query"]) for k in ("query", "key", "value")]
    inputs = [three[0].transpose(0, 1)] * 3 if turn else three
    out, _ = layer(
        *inputs,
        key_padding_mask=leaves.get("key_padding_mask"),
        attn_mask=leaves.get("attn_mask"),
        need_weights=False,
        is_causal="causal" in has,
    )
    out = out.transpose(0, 1) if turn else out
    (out * given["d_out"]).sum().backward()
    found = {"out": out.detach()}
    found |= {f"d_{k}": x.grad for k, x in leaves.items() if x.grad is not None}
    found |= {f"p_{k}": p.grad.clone() for k, p in layer.named_parameters() if p.grad is not None}
    return found


def axis_of(name: str, x: torch.Tensor) -> int:
    """Which axis of a tensor is that of tokens."""
    name = name.removeprefix("d_")
    if name == "attn_mask":
        return x.dim() - 2
    return x.dim() - 1 if name == "key_padding_mask" else x.dim() - 2


def ranks_pass(
    ranks: Communicator, given: Result, layer: MultiheadAttention, has: set[str], **how: Any
) -> Result:
    """What ranks find together: outputs and gradients put together, those of parameters summed."""
    layer = copy.deepcopy(layer).parallel(ranks, **how)
    parallel = layer._parallel
    assert parallel is not None
    own = {k: parallel.shard(x, axis_of(k, x)) for k, x in given.items()}
    found = passed(layer, own, has)
    for k, x in found.items():
        if k.startswith("p_"):
            parallel.sum(x.numpy())
        else:
            found[k] = parallel.gather(x, axis_of("d_query" if k == "out" else k, x))
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_layer_of_one_process(name: str) -> None:
    options, has = LAYERS[name]
    layer = layer_of(options)
    given = inputs_of(layer, has, torch.float32)
    expected = passed(copy.deepcopy(layer), given, has)
    for how in ({"sharding": "zigzag"}, {"scheme": "all_to_all"}):
        for found in in_threads(
            3, lambda ranks, how=how: ranks_pass(ranks, given, layer, has, **how)
        ):
            assert_near(found, expected, 3e-6)


def test_dropout_of_a_layer_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of({"dropout": 0.3, "add_bias_kv": True, "add_zero_attn": True})
    given, seed = inputs_of(layer, set(), torch.float32), torch.randint(2**63 - 1, ())
    with monkeypatch.context() as patch:
        patch.setattr("multihead.torch.dispatch._draw_seed", lambda: seed)
        expected = passed(copy.deepcopy(layer), given, set())
    monkeypatch.setattr("multihead.torch.parallel_module.drawn_seed", lambda _: int(seed))
    how = {"sharding": "zigzag"}
    for found in in_threads(3, lambda ranks: ranks_pass(ranks, given, layer, set(), **how)):
        assert_near(found, expected, 3e-6)


def test_a_mesh_of_heads_and_a_ring() -> None:
    layer = layer_of({"rope": mh.Rope()})
    has = {"causal", "padding"}
    given = inputs_of(layer, has, torch.float32)
    expected = passed(copy.deepcopy(layer), given, has)

    def program(ranks: Communicator) -> Result:
        row, column = divmod(ranks.rank, 2)
        heads = threads.part_of(ranks, [2 * row, 2 * row + 1])
        ring = threads.part_of(ranks, [column, column + 2])
        how = {"scheme": "all_to_all", "sharding": "zigzag", "ring": ring}
        return ranks_pass(heads, given, layer, has, **how)

    for found in in_threads(4, program):
        assert_near(found, expected, 3e-6)


def test_parts_of_any_lengths() -> None:
    layer, has = layer_of({"rope": mh.Rope()}), {"causal", "padding"}
    given = inputs_of(layer, has, torch.float32)
    with torch.no_grad():
        x, padding = given["query"], given["key_padding_mask"]
        expected, _ = layer(x, x, x, key_padding_mask=padding, need_weights=False, is_causal=True)

    def program(ranks: Communicator) -> torch.Tensor:
        span = [slice(0, 4), slice(4, 4), slice(4, L)][ranks.rank]
        own = copy.deepcopy(layer).parallel(ranks)
        part = x[:, span]
        options = {"key_padding_mask": padding[:, span], "need_weights": False}
        with torch.no_grad():
            out, _ = own(part, part, part, is_causal=True, **options)
        found: torch.Tensor = ContextParallel(ranks).gather(out, 1)
        return found

    for found in in_threads(3, program):
        assert_near({"out": found}, {"out": expected}, 3e-6)


@pytest.mark.parametrize("training", [True, False])
def test_layers_of_pytorch_call_it(training: bool) -> None:
    layer = torch.nn.TransformerEncoderLayer(E, H, 31, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2).train(training)
    x, padding = torch.randn(N, L, E), torch.rand(N, L) < 0.2
    with torch.no_grad():
        theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
        theirs.load_state_dict(model.state_dict())
        expected = theirs(x, src_key_padding_mask=padding)

    accelerate(model)

    def program(ranks: Communicator) -> torch.Tensor:
        own = parallel(copy.deepcopy(model), ranks)
        shared = ContextParallel(ranks)
        with torch.no_grad():
            out = own(shared.shard(x, 1), src_key_padding_mask=shared.shard(padding, 1))
        found: torch.Tensor = shared.gather(out, 1)
        return found

    for found in in_threads(2, program):
        assert_near({"out": found[~padding]}, {"out": expected[~padding]}, 3e-6)


def test_half_precision_of_a_layer() -> None:
    layer = layer_of({"rope": mh.Rope(), "add_bias_kv": True})
    x = torch.randn(N, L, E).bfloat16()

    def attended(layer: MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = layer(x, x, x, need_weights=False)[0]
        return found

    expected = attended(layer, x).detach().float()

    def program(ranks: Communicator) -> Result:
        own, shared = copy.deepcopy(layer).parallel(ranks), ContextParallel(ranks)
        plain = attended(own, shared.shard(x, 1))
        with torch.autocast("cpu", torch.bfloat16):
            cast = attended(own, shared.shard(x.float(), 1))
        assert plain.dtype == cast.dtype == torch.bfloat16
        return {"plain": shared.gather(plain.detach(), 1), "cast": shared.gather(cast.detach(), 1)}

    for found in in_threads(2, program):
        for y in found.values():
            assert_near({"out": y.float()}, {"out": expected}, 2**-5)


def test_a_layer_is_copied_and_not_pickled() -> None:
    def program(ranks: Communicator) -> None:
        layer = MultiheadAttention(E, H).parallel(ranks)
        assert copy.deepcopy(layer)._parallel is layer._parallel
        assert "parallel=ContextParallel(rank=0 of 1" in repr(layer)
        with pytest.raises(TypeError, match=r"state_dict\(\)"):
            pickle.dumps(layer)
        assert restore(layer) == 0  # it would attend to this rank's tokens alone
        pickle.dumps(layer.parallel(None))
        assert restore(layer) == 1

    in_threads(1, program)


LAYER_REFUSED: dict[str, tuple[Callable[[torch.Tensor], dict[str, Any]], str]] = {
    "weights": (lambda _: {"need_weights": True}, "need_weights: expected False beside"),
    "cache": (lambda _: {"kv_cache": object()}, "kv_cache: expected None beside"),
    "padding": (
        lambda x: {"key_padding_mask": torch.zeros(N, L, dtype=torch.bool)},
        r"key_padding_mask: expected \(2, ",
    ),
    "mask": (
        lambda x: {"attn_mask": torch.zeros(L, L)},
        r"attn_mask: expected \(1\d, S\), ",
    ),
    "columns": (
        lambda x: {"attn_mask": torch.zeros(x.shape[1], L + 1)},
        "attn_mask: expected a column for each of 29 keys of all ranks, got 30 on rank 0",
    ),
    "few columns": (
        lambda x: {"attn_mask": torch.zeros(x.shape[1], x.shape[1])},
        "attn_mask: expected a column for each of 29 keys",
    ),
    "value": (lambda x: {"value": torch.zeros(N, 3, E)}, "value: expected the tokens of key"),
    "width": (lambda x: {"key": torch.zeros(N, 3, E + 1)}, "key: expected "),
    "device": (lambda x: {"key": torch.zeros(N, 3, E, device="meta")}, "key: expected a dense"),
}


@pytest.mark.parametrize("case", LAYER_REFUSED)
def test_what_a_layer_refuses_on_all_ranks(case: str) -> None:
    make, message = LAYER_REFUSED[case]

    def program(ranks: Communicator) -> None:
        layer = MultiheadAttention(E, H, batch_first=True).parallel(ranks)
        part = ContextParallel(ranks).shard(torch.zeros(N, L, E), 1)
        given = {"query": part, "key": part, "value": part, "need_weights": False} | make(part)
        with pytest.raises(ValueError, match=message):
            layer(**given)

    in_threads(2, program)


def test_one_rank_s_mistake_is_an_error_on_all() -> None:
    def program(ranks: Communicator) -> str:
        layer = MultiheadAttention(E, H, batch_first=True).parallel(ranks)
        x = torch.zeros(N, 5, E - ranks.rank)
        with pytest.raises(ValueError, match="query: expected ") as raised:
            layer(x, x, x, need_weights=False)
        return str(raised.value)

    assert in_threads(2, program)[0].startswith("rank 1: expected arguments that fit, got ")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_torch_compile_leaves_its_graph() -> None:
    layer = layer_of({})
    x = torch.randn(N, L, E)
    expected = layer(x, x, x, need_weights=False)[0]
    own = layer.parallel(Alone())
    whole = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Identity())

    def called(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = own(x, x, x, need_weights=False)[0]
        return found + whole(found)

    found: torch.Tensor = torch.compile(called, backend="eager")(x).detach()
    assert_near({"out": found}, {"out": (expected + expected.relu()).detach()}, 3e-6)
