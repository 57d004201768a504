"""Our module and accelerated models under PyTorch's data parallelism, and state dict hooks."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import torch_workers
from multihead.torch import MultiheadAttention, accelerate, restore, tensors
from tolerance import TORCH, assert_all_close, assert_close, tolerance
from torch_workers import EMBED, HEADS, WIDTH, WORLD, Arrays, Batch, How, Pair

ITEMS, TOKENS, STEPS = 7, 9, 3
BOUND = {torch.float32: tolerance(TORCH, "float32"), torch.float64: tolerance(TORCH, "float64")}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes that serve every test, unless one fails."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("PyTorch without gloo")
    pair = Pair(tmp_path_factory.mktemp("gloo"))
    yield pair
    pair.kill()


@pytest.fixture(autouse=True)
def seeded(rng: np.random.Generator) -> None:
    """Start from a state of PyTorch's generator that belongs to the test."""
    torch.manual_seed(int(rng.integers(2**31)))


def model_of(how: How) -> tuple[torch.nn.Module, Arrays]:
    """PyTorch's model with random parameters, biases too, and its state."""
    model = torch_workers.plain(how)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias" in name:
                p.normal_(0, 0.3)
    return model, state_of(model)


def state_of(model: torch.nn.Module) -> Arrays:
    return {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}


def batches_of(rng: np.random.Generator, how: How, steps: int = STEPS) -> list[Batch]:
    """Batches of items that are not all of one length."""
    batches = []
    for _ in range(steps):
        lengths = rng.integers(1, TOKENS + 1, ITEMS)
        padding = np.arange(TOKENS) >= lengths[:, None]
        shape = ITEMS, TOKENS, WIDTH if how.kind == "encoder" else EMBED
        batches.append((rng.standard_normal(shape), padding, rng.standard_normal(shape)))
    return batches


def named(found: Arrays, kind: str) -> Arrays:
    return {name: x for name, x in found.items() if f"{kind} " in name}


def trained_as_one(processes: Pair, rng: np.random.Generator, how: How) -> None:
    """Assert that two processes train as PyTorch's own module does in one, on whole batches."""
    model, state = model_of(how)
    batches = batches_of(rng, how)
    ranks = processes.run(torch_workers.distributed_training, how, state, batches)
    alone = replace(how, dtype=torch.float64)
    expected = torch_workers.train(alone, model.double(), batches, None)
    bound = BOUND[how.dtype]

    for i, found in enumerate(ranks):
        for kind in ("gradient", "parameter"):
            assert_all_close(named(found, kind), named(expected, kind), bound, f"rank {i}")
        if how.kind != "choice":
            out, *_ = torch_workers.share((expected["out"],) * 3, i)
            assert_close(found["out"], out, bound, f"rank {i} out")
    for name, x in ranks[0].items():
        if name != "out":
            np.testing.assert_array_equal(x, ranks[1][name], name)
    for name, x in state.items():
        after = ranks[0][f"parameter {name}"]
        assert np.abs(after - x).max() > 0.01, f"{name} did not move"
        if how.wrapper == "fsdp":
            np.testing.assert_array_equal(ranks[0][f"state {name}"], after, name)
    if how.wrapper == "fsdp":
        assert named(ranks[0], "state").keys() == {f"state {name}" for name in state}


DDP = {
    "a layer": How(kind="layer", accelerated="beginning", weights=True),
    "a layer accelerated before": How(kind="layer"),
    "accelerated before": How(),
    "accelerated after": How(accelerated="after"),
    "small buckets and views": How(
        options=(("gradient_as_bucket_view", True), ("bucket_cap_mb", 0.001))
    ),
    "a static graph": How(options=(("static_graph", True),)),
    "accumulated": How(kind="layer", weights=True, accelerated="after", accumulated=True),
}


@pytest.mark.parametrize("how", DDP.values(), ids=DDP)
def test_ddp_trains_as_one_process_does(
    processes: Pair, rng: np.random.Generator, how: How
) -> None:
    trained_as_one(processes, rng, how)


@pytest.mark.parametrize("kind", ["layer", "encoder"])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_float32_trains_as_one_process_does(
    processes: Pair, rng: np.random.Generator, wrapper: str, kind: str
) -> None:
    trained_as_one(processes, rng, How(kind=kind, wrapper=wrapper, dtype=torch.float32))


@pytest.mark.parametrize("accelerated", ["before", "after"])
def test_ddp_finds_the_parameters_that_a_step_does_not_use(
    processes: Pair, rng: np.random.Generator, accelerated: str
) -> None:
    options = (("find_unused_parameters", True),)
    how = How(kind="choice", accelerated=accelerated, options=options)
    trained_as_one(processes, rng, how)


@pytest.mark.parametrize("accelerated", ["before", "after"])
@pytest.mark.parametrize("part", ["layers", "attention", "reentrant"])
def test_checkpointed_activations_under_ddp(
    processes: Pair, rng: np.random.Generator, part: str, accelerated: str
) -> None:
    trained_as_one(processes, rng, How(checkpoint=part, accelerated=accelerated))


FSDP = {
    "a layer": How(kind="layer", accelerated="beginning"),
    "a layer with weights": How(kind="layer", accelerated="beginning", weights=True),
    "a layer accelerated after": How(kind="layer", accelerated="after"),
    "the root": How(),
    "the root, accelerated after": How(accelerated="after"),
    "each layer": How(shards="layers"),
    "each layer, accelerated after": How(shards="layers", accelerated="after"),
    "each attention": How(shards="attention"),
    "each attention, accelerated after": How(shards="attention", accelerated="after"),
    "gathered again": How(shards="attention", options=(("reshard_after_forward", True),)),
    "gathered once": How(shards="layers", options=(("reshard_after_forward", False),)),
    "checkpointed layers": How(shards="layers", checkpoint="layers"),
    "checkpointed attention": How(checkpoint="attention"),
}


@pytest.mark.parametrize("how", FSDP.values(), ids=FSDP)
def test_fsdp_trains_as_one_process_does(
    processes: Pair, rng: np.random.Generator, how: How
) -> None:
    trained_as_one(processes, rng, replace(how, wrapper="fsdp"))


@pytest.mark.parametrize("accelerated", ["before", "after"])
@pytest.mark.parametrize("kind", ["layer", "encoder"])
def test_fsdp_loads_pytorch_s_whole_state(
    processes: Pair, rng: np.random.Generator, kind: str, accelerated: str
) -> None:
    shards = "attention" if kind == "encoder" else "root"
    how = How(kind=kind, wrapper="fsdp", shards=shards, accelerated=accelerated)
    model, state = model_of(how)
    (batch,) = batches_of(rng, how, 1)
    out = torch_workers.output(how, model.eval(), batch)[0].detach().numpy()
    for i, found in enumerate(processes.run(torch_workers.loaded, how, state, batch)):
        assert_close(found["out"], torch_workers.share((out,) * 3, i)[0], BOUND[how.dtype])
        assert named(found, "state").keys() == {f"state {name}" for name in state}
        for name, x in state.items():
            np.testing.assert_array_equal(found[f"state {name}"], x, name)


DROPPED = {
    "ddp": How(kind="layer", accelerated="beginning", dropout=0.4),
    "fsdp": How(kind="layer", accelerated="beginning", dropout=0.4, wrapper="fsdp"),
}


@pytest.mark.parametrize("how", DROPPED.values(), ids=DROPPED)
def test_dropout_is_each_rank_s_own(processes: Pair, rng: np.random.Generator, how: How) -> None:
    _, state = model_of(how)
    (batch,) = batches_of(rng, how, 1)
    bound = BOUND[how.dtype]
    seeds = [int(seed) for seed in rng.integers(2**31, size=WORLD)]
    ranks = processes.run(torch_workers.dropped, how, state, batch, seeds)

    alone, gradients = [], []
    for seed in seeds:
        model = torch_workers.ours(how, state).train()
        torch.manual_seed(seed)
        out, _ = torch_workers.output(how, model, batch)
        out.square().sum().backward()
        alone.append(out.detach().numpy())
        gradients.append({name: p.grad.numpy() for name, p in model.named_parameters()})
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    mean = {f"gradient {name}": (x + gradients[1][name]) / 2 for name, x in gradients[0].items()}
    for i, found in enumerate(ranks):
        assert_close(found["out"], alone[i], bound, f"rank {i} out")
        assert_all_close(named(found, "gradient"), mean, bound, f"rank {i}")
    for kind in ("gradient", "parameter"):
        for name, x in named(ranks[0], kind).items():
            np.testing.assert_array_equal(x, ranks[1][name], name)

    same = processes.run(torch_workers.dropped, how, state, batch, [seeds[1]] * WORLD)
    np.testing.assert_array_equal(same[0]["out"], same[1]["out"])
    np.testing.assert_array_equal(same[0]["out"], ranks[1]["out"])


@pytest.mark.parametrize("part", ["layers", "attention", "reentrant"])
def test_checkpointing_under_ddp_sees_the_same_dropout(
    processes: Pair, rng: np.random.Generator, part: str
) -> None:
    how = How(dropout=0.3)
    _, state = model_of(how)
    (batch,) = batches_of(rng, how, 1)
    seeds = [int(seed) for seed in rng.integers(2**31, size=WORLD)]
    expected = processes.run(torch_workers.dropped, how, state, batch, seeds)
    ranks = processes.run(torch_workers.dropped, replace(how, checkpoint=part), state, batch, seeds)
    for found, want in zip(ranks, expected, strict=True):
        assert_all_close(found, want, BOUND[how.dtype])
    assert np.abs(expected[0]["out"] - expected[1]["out"]).max() > 0.01


def test_fsdp_s_mixed_precision_is_the_layer_in_bfloat16(
    processes: Pair, rng: np.random.Generator
) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    how = How(
        kind="layer",
        wrapper="fsdp",
        accelerated="beginning",
        dtype=torch.float32,
        options=(("mp_policy", policy),),
    )
    _, state = model_of(how)
    batches = batches_of(rng, how, 1)
    ranks = processes.run(torch_workers.distributed_training, how, state, batches)

    narrow = replace(how, dtype=torch.bfloat16)
    mean: Arrays = {}
    for i in range(WORLD):
        model = torch_workers.ours(narrow, state).train()
        part = torch_workers.share(batches[0], i)
        (torch_workers.loss(narrow, model, part) * WORLD / ITEMS).backward()
        for name, p in model.named_parameters():
            assert p.grad.dtype == torch.bfloat16
            name = f"step 0 gradient {name}"
            mean[name] = mean.get(name, 0.0) + p.grad.double().numpy() / WORLD
    for found in ranks:
        gradients = named(found, "gradient")
        assert {x.dtype for x in gradients.values()} == {np.dtype(np.float32)}
        assert_all_close(gradients, mean, BOUND[how.dtype])


@pytest.mark.parametrize("when", ["forward", "backward", "backward without its hook"])
def test_parameters_without_memory_are_an_error(processes: Pair, when: str) -> None:
    assert processes.run(torch_workers.freed, when) == [{}, {}]


@pytest.mark.parametrize("reads", ["tensors", "arrays"])
def test_memory_that_the_engine_has_read_can_be_freed(
    monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    if reads == "arrays":  # as with a PyTorch that has no functions for the engine
        monkeypatch.setattr(tensors, "_DIRECT", False)
    layer = MultiheadAttention(EMBED, HEADS, batch_first=True)
    x = torch.randn(2, TOKENS, EMBED, requires_grad=True)
    mask = torch.rand(TOKENS, TOKENS)
    out, weights = layer(x, x, x, attn_mask=mask)
    (out.sum() + weights.sum()).backward()
    assert x.grad is not None
    for tensor in (*layer.parameters(), x, mask, out, weights, x.grad):
        storage = tensor.untyped_storage()
        assert storage.nbytes() > 0
        storage.resize_(0)
        assert storage.nbytes() == 0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_in_one_rank_ends_both_and_the_next_job_runs(processes: Pair, rank: int) -> None:
    processes.run(torch_workers.wait, 0.0)
    pids = processes.pids()
    assert all(alive(pid) for pid in pids)
    with pytest.raises(AssertionError, match=rf"rank {rank}: (.|\n)*ValueError: as it should"):
        processes.run(torch_workers.fail, rank)
    assert not any(alive(pid) for pid in pids)
    assert processes.run(torch_workers.wait, 0.0) == [{}, {}]


def test_a_late_answer_ends_both_ranks(processes: Pair) -> None:
    processes.run(torch_workers.wait, 0.0)
    pids = processes.pids()
    begin = time.monotonic()
    with pytest.raises(AssertionError, match="no answer in time"):
        processes.run(torch_workers.wait, 60.0, seconds=0.2)
    assert time.monotonic() - begin < 10
    assert not any(alive(pid) for pid in pids)


def ours_like(theirs: torch.nn.Module, origin: str) -> torch.nn.Module:
    """Return our module, or PyTorch's that was accelerated, with the same parameters."""
    if origin == "ours":
        ours: torch.nn.Module = MultiheadAttention(EMBED, HEADS, batch_first=True)
        ours.load_state_dict(theirs.state_dict())
        return ours
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    if origin == "restored":
        restore(ours)
    return ours


def hooked(model: torch.nn.Module) -> tuple[list[Any], list[Any]]:
    """Register hooks of every kind on a module and its `out_proj`; return events and handles."""
    events: list[Any] = []
    handles = []
    for where, module in (("attention", model), ("out_proj", model.out_proj)):

        def saving(module: Any, prefix: str, keep_vars: bool, where: str = where) -> None:
            events.append(("saving", where, module is model, prefix, keep_vars))

        def saved(module: Any, state: Any, prefix: str, meta: Any, where: str = where) -> None:
            events.append(("saved", where, module is model, list(state), prefix, dict(meta)))

        def loading(module: Any, state: Any, prefix: str, *more: Any, where: str = where) -> None:
            events.append(("loading", where, module is model, list(state), prefix, repr(more)))

        def loaded(module: Any, incompatible: Any, where: str = where) -> None:
            events.append(("loaded", where, module is model, repr(incompatible)))

        handles += [
            module.register_state_dict_pre_hook(saving),
            module.register_state_dict_post_hook(saved),
            module.register_load_state_dict_pre_hook(loading),
            module.register_load_state_dict_post_hook(loaded),
        ]
    return events, handles


def failure_of(call: Callable[[], Any]) -> str:
    with pytest.raises(RuntimeError) as failure:
        call()
    return str(failure.value)


ORIGINS = ("ours", "accelerated", "restored")


@pytest.mark.parametrize("origin", ORIGINS)
def test_state_dict_hooks_see_what_they_see_on_pytorch_s(origin: str) -> None:
    theirs = torch.nn.MultiheadAttention(EMBED, HEADS, batch_first=True)
    seen = []
    for model in (theirs, ours_like(theirs, origin)):
        around = torch.nn.Sequential(torch.nn.Linear(3, 3), model)
        events, handles = hooked(model)
        state = around.state_dict(keep_vars=True)
        assert state["1.in_proj_weight"] is model.in_proj_weight
        del state["1.out_proj.bias"]
        state["1.more"] = torch.zeros(2)
        around.load_state_dict(state, strict=False)
        missing = failure_of(lambda: around.load_state_dict(state))  # noqa: B023
        assert "1.out_proj.bias" in missing
        assert "1.more" in missing
        wrong = around.state_dict(prefix="x.") | {"1.in_proj_bias": torch.zeros(EMBED)}
        misshapen = failure_of(lambda: around.load_state_dict(wrong, strict=False))  # noqa: B023
        assert "size mismatch for 1.in_proj_bias" in misshapen
        count = len(events)
        assert count == 2 * (2 * 2 + 3 * 2)
        for handle in handles:
            handle.remove()
        around.load_state_dict(around.state_dict())
        assert len(events) == count
        seen.append((events, missing, misshapen))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("origin", ["accelerated", "restored"])
def test_state_dict_hooks_stay_where_they_were(origin: str) -> None:
    model = torch.nn.MultiheadAttention(EMBED, HEADS)
    events, _ = hooked(model)
    before = model.state_dict()
    assert accelerate(model) == 1
    assert isinstance(model, MultiheadAttention)
    if origin == "restored":
        assert restore(model) == 1
    first = list(events)
    assert len(first) == 4
    after = model.state_dict()
    assert events == first * 2
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == x.data_ptr() for name, x in before.items())
    model.load_state_dict(before)
    assert [event[:3] for event in events[8:]] == [
        ("loading", "attention", True),
        ("loading", "out_proj", False),
        ("loaded", "out_proj", False),
        ("loaded", "attention", True),
    ]


def renamed(model: torch.nn.Module) -> torch.nn.Module:
    """Register hooks that save under other names, and load from them."""

    def out(module: Any, state: Any, prefix: str, meta: Any) -> None:
        state[f"{prefix}packed"] = state.pop(f"{prefix}in_proj_weight") * 2

    def back(module: Any, state: Any, prefix: str, *_: Any) -> None:
        state[f"{prefix}in_proj_weight"] = state.pop(f"{prefix}packed") / 2

    model.register_state_dict_post_hook(out)
    model.register_load_state_dict_pre_hook(back)
    return model


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("origin", ORIGINS)
def test_state_dict_hooks_that_rename_carry_a_state_both_ways(origin: str, assign: bool) -> None:
    theirs = torch.nn.MultiheadAttention(EMBED, HEADS, batch_first=True)
    ours = ours_like(torch.nn.MultiheadAttention(EMBED, HEADS, batch_first=True), origin)
    renamed(theirs)
    renamed(ours)
    x = torch.randn(2, TOKENS, EMBED)
    for source, target in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            for p in source.parameters():
                p.normal_(0, 0.3)
        state = source.state_dict()
        assert "packed" in state
        assert "in_proj_weight" not in state
        result = target.load_state_dict(state, assign=assign)
        assert str(result) == "<All keys matched successfully>"
        for name, p in source.named_parameters():
            assert torch.equal(dict(target.named_parameters())[name], p), name
        assert (target.out_proj.weight.data_ptr() == source.out_proj.weight.data_ptr()) == assign
        found, expected = target(x, x, x)[0], source(x, x, x)[0]
        assert_close(found.detach().numpy(), expected.detach().numpy(), BOUND[torch.float32])


@pytest.mark.parametrize("origin", ORIGINS)
def test_state_dict_hooks_change_values_and_forgive_or_refuse(origin: str) -> None:
    theirs = torch.nn.MultiheadAttention(EMBED, HEADS, batch_first=True)
    kept, failures = [], []
    for model in (theirs, ours_like(theirs, origin)):

        def fixed(module: Any, prefix: str, keep_vars: bool) -> None:
            with torch.no_grad():
                module.out_proj.bias.fill_(0.25)

        model.register_state_dict_pre_hook(fixed)
        state = model.state_dict()
        assert (state["out_proj.bias"] == 0.25).all()
        assert (model.out_proj.bias == 0.25).all()

        with torch.no_grad():
            model.in_proj_weight.zero_()
        partial = {name: x * 3 for name, x in state.items() if name != "in_proj_bias"}
        failures.append(failure_of(lambda: model.load_state_dict(partial)))  # noqa: B023
        forgive = model.register_load_state_dict_post_hook(
            lambda module, incompatible: incompatible.missing_keys.clear()
        )
        assert str(model.load_state_dict(partial)) == "<All keys matched successfully>"
        forgive.remove()

        def refuse(*arguments: Any) -> None:
            arguments[-1].append("not this one")

        model.register_load_state_dict_pre_hook(lambda module, *more: refuse(*more))
        failures.append(failure_of(lambda: model.load_state_dict(state)))  # noqa: B023
        kept.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert failures[:2] == failures[2:]
    assert "in_proj_bias" in failures[0]
    assert "not this one" in failures[1]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[1][name], p) for name, p in kept[0].items())
