"""Layers whose sequences are shared by ranks, beside one process's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import multihead as mh
from multihead.distributed import Alone, Communicator, ContextParallel, threads
from multihead.torch import MultiheadAttention, accelerate, parallel, restore
from torch_ranks import H, L, N, Result, S, assert_as_one, assert_near, in_threads

pytestmark = pytest.mark.timeout(60)

E = 24  # features
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
            p.normal_(0, p.shape[-1] ** -0.5)
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


def exactly(layer: MultiheadAttention, given: Result, has: set[str]) -> Result:
    """What one process finds in float64."""
    wide = {k: x if x.dtype == torch.bool else x.double() for k, x in given.items()}
    return passed(copy.deepcopy(layer).double(), wide, has)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_layer_of_one_process(name: str) -> None:
    options, has = LAYERS[name]
    layer = layer_of(options)
    given = inputs_of(layer, has, torch.float32)
    expected, exact = passed(copy.deepcopy(layer), given, has), exactly(layer, given, has)
    for how in ({"sharding": "zigzag"}, {"scheme": "all_to_all"}):
        for found in in_threads(
            3, lambda ranks, how=how: ranks_pass(ranks, given, layer, has, **how)
        ):
            assert_as_one(found, expected, exact)


def test_dropout_of_a_layer_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of({"dropout": 0.3, "add_bias_kv": True, "add_zero_attn": True})
    given, seed = inputs_of(layer, set(), torch.float32), torch.randint(2**63 - 1, ())
    with monkeypatch.context() as patch:
        patch.setattr("multihead.torch.dispatch._draw_seed", lambda: seed)
        expected = passed(copy.deepcopy(layer), given, set())
        exact = exactly(layer, given, set())
    monkeypatch.setattr("multihead.torch.parallel_module.drawn_seed", lambda _: int(seed))
    how = {"sharding": "zigzag"}
    for found in in_threads(3, lambda ranks: ranks_pass(ranks, given, layer, set(), **how)):
        assert_as_one(found, expected, exact)


def test_a_mesh_of_heads_and_a_ring() -> None:
    layer = layer_of({"rope": mh.Rope()})
    has = {"causal", "padding"}
    given = inputs_of(layer, has, torch.float32)
    expected, exact = passed(copy.deepcopy(layer), given, has), exactly(layer, given, has)

    def program(ranks: Communicator) -> Result:
        row, column = divmod(ranks.rank, 2)
        heads = threads.part_of(ranks, [2 * row, 2 * row + 1])
        ring = threads.part_of(ranks, [column, column + 2])
        how = {"scheme": "all_to_all", "sharding": "zigzag", "ring": ring}
        return ranks_pass(heads, given, layer, has, **how)

    for found in in_threads(4, program):
        assert_as_one(found, expected, exact)


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
        assert_near({"out": found}, {"out": expected})


@pytest.mark.parametrize("training", [True, False])
def test_layers_of_pytorch_call_it(training: bool) -> None:
    layer = torch.nn.TransformerEncoderLayer(E, H, 31, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2).train(training)
    x, padding = torch.randn(N, L, E), torch.rand(N, L) < 0.2
    theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    theirs.load_state_dict(model.state_dict())
    accelerate(model)
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        exact = theirs.double()(x.double(), src_key_padding_mask=padding)

    def program(ranks: Communicator) -> torch.Tensor:
        own = parallel(copy.deepcopy(model), ranks)
        shared = ContextParallel(ranks)
        with torch.no_grad():
            out = own(shared.shard(x, 1), src_key_padding_mask=shared.shard(padding, 1))
        found: torch.Tensor = shared.gather(out, 1)
        return found

    for found in in_threads(2, program):
        parts = ({"out": out[~padding]} for out in (found, expected, exact))
        assert_as_one(*parts)


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


UNLIKE: dict[str, Callable[[torch.Tensor], dict[str, Any]]] = {
    "width": lambda x: {"query": x[..., 1:]},
    "dtype": lambda x: {"query": x.double(), "key": x.double(), "value": x.double()},
    "sequences": lambda x: {"query": x[:1], "key": x[:1], "value": x[:1]},
    "need_weights": lambda x: {"need_weights": True},
    "kv_cache": lambda x: {"kv_cache": object()},
    "is_causal": lambda x: {"is_causal": True},
}


@pytest.mark.parametrize("case", [*UNLIKE, "dropout", "training", "sharding"])
def test_one_rank_s_mistake_is_an_error_on_all(case: str) -> None:
    def program(ranks: Communicator) -> str:
        layer, other = MultiheadAttention(E, H, 0.1, batch_first=True), ranks.rank == 1
        if other and case == "dropout":
            layer.dropout = 0.2
        sharding = "zigzag" if other and case == "sharding" else "contiguous"
        layer = layer.parallel(ranks, sharding=sharding).train(not (other and case == "training"))
        x = torch.zeros(N, 5, E)
        given = {"query": x, "key": x, "value": x, "need_weights": False}
        if other and case in UNLIKE:
            given |= UNLIKE[case](x)
        with pytest.raises(ValueError, match="expected") as raised:
            layer(**given)
        return str(raised.value)

    for said in in_threads(2, program):
        assert "waited" not in said
        assert ("query" if case == "width" else case) in said


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
    assert_near({"out": found}, {"out": (expected + expected.relu()).detach()})
