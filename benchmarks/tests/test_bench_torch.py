"""The benchmark of the torch face: its models, its calls of attention, its targets; all tiny."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import multihead as mh
import multihead.torch
from benchmarks import run, twins
from benchmarks.__main__ import main
from benchmarks.calls import AttentionStep, attention_alone, calls
from benchmarks.contenders import OURS, TORCH
from benchmarks.measure import DisagreementError
from benchmarks.models import Batch, build
from benchmarks.report import outcome
from benchmarks.targets import FACES, TARGETS, agreement, choose, models, overhead
from benchmarks.targets import target as targets
from benchmarks.targets.target import Reached, Result, Run, reach
from benchmarks.twins import Inference, Training, agreed, both
from benchmarks.workloads import SMALL, WORKLOADS, Workload
from cells import BRIEF, target

TINY = (
    Workload("encoder", 3, 12, 16, 2, 32, 2),
    Workload("transformer", 2, 9, 16, 4, 32, 2),
    Workload("vit", 2, 10, 24, 2, 32, 2, activation="gelu"),
)
every_model = pytest.mark.parametrize("work", TINY, ids=lambda work: work.model)


def a_run() -> Run:
    return Run("torch", mh.get_num_threads(), BRIEF)


# models


@every_model
def test_a_model_takes_its_batch(work: Workload) -> None:
    model = build(work)
    batch = model.draw()
    out = model(*batch.inputs)
    if work.model == "vit":
        assert batch.inputs[0].shape == (2, 3, 48, 48)
        assert out.shape == (2, 10)
    else:
        assert out.shape == batch.wanted.shape == (work.batch, work.length, work.embed_dim)
    assert batch.loss(out).shape == ()
    attention = [x for x in model.modules() if isinstance(x, torch.nn.MultiheadAttention)]
    assert len(attention) == work.layers * (3 if work.model == "transformer" else 1)
    assert {layer.dropout for layer in attention} == {work.dropout}


def test_the_encoder_s_batch_is_padded_from_a_quarter_to_the_whole() -> None:
    _, hidden = (batch := build(TINY[0]).draw()).inputs
    lengths = batch.real.sum(1)
    assert hidden.dtype == torch.bool
    assert torch.equal(hidden, ~batch.real)
    assert 3 <= lengths.min() < lengths.max() <= 12


def test_the_loss_is_that_of_real_positions() -> None:
    real = torch.tensor([[True, True], [True, False]])
    wanted = torch.zeros(2, 2, 3)
    out = torch.where(real[..., None], 2.0, torch.nan)
    assert Batch((), wanted, real).loss(out) == 4.0


@pytest.mark.parametrize("work", [*WORKLOADS, *SMALL], ids=str)
def test_the_exact_workload_has_no_dropout_and_no_corners(work: Workload) -> None:
    exact = work.exact()
    assert (exact.dropout, exact.activation) == (0.0, "gelu")
    assert str(exact) == str(work)


# twins


@every_model
def test_twins_are_one_model_with_two_kinds_of_attention(work: Workload) -> None:
    made = twins.twins(work)
    assert list(made) == [OURS, TORCH]
    assert made[OURS].state_dict().keys() == made[TORCH].state_dict().keys()
    for a, b in zip(made[OURS].parameters(), made[TORCH].parameters(), strict=True):
        assert a is not b
        assert torch.equal(a, b)
    for name, accelerated in ((OURS, True), (TORCH, False)):
        kinds = [
            isinstance(module, multihead.torch.MultiheadAttention)
            for module in made[name].modules()
            if isinstance(module, torch.nn.MultiheadAttention)
        ]
        assert set(kinds) == {accelerated}


def test_torch_does_not_race_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "accelerate", lambda model: 0)
    with pytest.raises(RuntimeError, match="accelerate changed 0 of 2 attention layers"):
        twins.twins(TINY[0])


@every_model
@pytest.mark.parametrize("kind", [Inference, Training])
def test_twins_agree(work: Workload, kind: Any) -> None:
    steps = agreed(both(kind, work.exact()), work)
    results = steps[OURS].results()
    parameters = {name for name, _ in build(work).named_parameters()}
    assert results.keys() == ({"out"} if kind is Inference else {"loss", *parameters})


def test_a_training_step_is_that_of_a_training_loop() -> None:
    step = both(Training, TINY[2].exact())[TORCH]
    model = build(TINY[2].exact())
    optimizer = torch.optim.AdamW(model.parameters(), lr=twins.LEARNING_RATE)
    batch = step.batch
    for _ in range(3):
        step()
        optimizer.zero_grad()
        loss = batch.loss(model(*batch.inputs))
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(step.loss, loss)


@every_model
def test_losses_of_twins_stay_together(work: Workload) -> None:
    found = twins.losses(work.exact(), 12)
    assert len(found[OURS]) == len(found[TORCH]) == 12
    np.testing.assert_allclose(found[OURS], found[TORCH], rtol=1e-3)
    assert np.mean(found[OURS][-5:]) < np.mean(found[OURS][:5])


# attention alone


def test_calls_are_told_apart_by_what_they_get() -> None:
    encoder, transformer, vit = (
        calls(model, model.draw()) for model in (build(work) for work in TINY)
    )
    (padded,) = encoder
    assert padded.count == 2
    assert padded.options["key_padding_mask"].shape == (3, 12)
    assert padded.options["attn_mask"] is None

    assert [call.count for call in transformer] == [2, 2, 2]
    source, target, cross = transformer
    assert source.options["attn_mask"] is None
    assert target.options["attn_mask"].shape == (9, 9)
    assert target.options["is_causal"]
    assert cross.inputs[0] is not cross.inputs[1]
    assert cross.inputs[1] is cross.inputs[2]

    (plain,) = vit
    assert plain.count == 2
    assert plain.inputs[0] is plain.inputs[1] is plain.inputs[2]
    assert plain.inputs[0].shape == (2, 10, 24)
    assert not any(call.options["need_weights"] for call in (padded, *transformer, plain))


@every_model
def test_a_call_alone_is_the_call_in_the_model(work: Workload) -> None:
    model = build(work.exact())
    batch = model.draw()
    made = calls(model, batch)
    outs: dict[str, Any] = {}
    for call in made:
        layer = model.get_submodule(call.layer)
        layer.register_forward_hook(
            lambda _, inputs, out, name=call.layer: outs.update({name: out[0].detach()})
        )
    model.train()(*batch.inputs)
    step = AttentionStep(model, made)
    step()
    results = step.results()
    assert step.shared == work.layers
    for call in made:
        np.testing.assert_allclose(results[f"{call.layer}.out"], outs[call.layer], rtol=1e-5)


@every_model
def test_attention_alone_goes_back_to_inputs_and_parameters(work: Workload) -> None:
    steps = agreed(attention_alone(work.exact()), work)
    results = steps[OURS].results()
    layers = {name.rpartition(".out")[0] for name in results if name.endswith(".out")}
    assert len(layers) == (3 if work.model == "transformer" else 1)
    parts = "out d_query d_key d_value in_proj_weight in_proj_bias out_proj.weight out_proj.bias"
    assert results.keys() == {f"{layer}.{part}" for layer in layers for part in parts.split()}
    again = steps[OURS]
    again()
    for name, value in again.results().items():  # gradients are cleared, not added up
        np.testing.assert_allclose(value, results[name], rtol=1e-5, atol=1e-6)


# targets


def test_every_model_has_its_rows() -> None:
    sizes = ["encoder-128", "encoder-512", "encoder-1024"]
    sizes += ["transformer-128", "transformer-512", "vit-197"]
    wanted = [
        f"{model}-{word}"
        for model in ("encoder", "transformer", "vit")
        for word in ("outputs", "gradients", "losses")
    ]
    wanted += ["overhead"]
    wanted += [f"{size}-{word}" for size in sizes for word in ("eval", "train", "attention")]
    assert [one.name for one in FACES["torch"]] == [f"torch-{name}" for name in wanted]
    assert not any(one.grid or one.bound is None for one in FACES["torch"])
    assert FACES["numpy"] is TARGETS
    bounds = {one.name: one.bound for one in models.TARGETS}
    assert bounds["torch-encoder-1024-attention"] == 2.0
    assert bounds["torch-vit-197-attention"] == 1.3
    assert bounds["torch-vit-197-eval"] == bounds["torch-vit-197-train"] == 0.95


def test_a_face_has_targets_of_its_own() -> None:
    assert [one.name for one in choose(["torch-o"], "torch")] == ["torch-overhead"]
    with pytest.raises(ValueError, match="begins with 'share'; there are torch-encoder-outputs"):
        choose(["share"], "torch")
    with pytest.raises(ValueError, match="begins with 'torch'; there are grid-mean"):
        choose(["torch"])


@every_model
@pytest.mark.parametrize("make", [0, 1, 2], ids=["eval", "train", "attention"])
def test_targets_of_a_model(work: Workload, make: int) -> None:
    made = (models._whole(work, False), models._whole(work, True), models._attention(work))[make]
    found = reach(made, a_run()).reached
    assert found.value is not None
    assert found.value > 0
    assert re.fullmatch(r"torch [\d.]+ [mu]s, ours [\d.]+ [mu]s", found.note)
    assert found.seconds.keys() == {OURS, TORCH}


@every_model
def test_targets_of_agreement(work: Workload) -> None:
    for made in (agreement._outputs(work), agreement._gradients(work), agreement._losses(work)):
        assert reach(made, a_run()).verdict == "met", made.name


def test_the_farthest_result_counts() -> None:
    class Step:
        def __init__(self, **results: list[float]) -> None:
            self.found = {name: np.array(value) for name, value in results.items()}

        def __call__(self) -> None: ...

        def results(self) -> dict[str, np.ndarray]:
            return self.found

    ours = Step(near=[1.0, 100.0], far=[0.0, 1.1], none=[0.0])
    theirs = Step(near=[2.0, 100.0], far=[0.0, 1.0], none=[0.0])
    found = agreement.farthest({OURS: ours, TORCH: theirs})
    assert found.value == pytest.approx(0.1 / 1.1)
    assert found.note == "in far"


def test_overhead_is_told_beside_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "CALLS", 3)
    result = reach(overhead.TARGETS[0], a_run())
    assert result.reached.value is not None
    assert 0 < result.reached.value
    assert result.reached.note.startswith("torch ")
    assert "target <= 40.0 us, reached " in outcome(result)


@pytest.mark.parametrize(
    "make",
    [
        lambda: models._whole(TINY[1], False),
        lambda: models._whole(TINY[1], True),
        lambda: models._attention(TINY[0]),
        lambda: overhead.TARGETS[0],
        lambda: agreement._outputs(TINY[2]),
        lambda: agreement._gradients(TINY[0]),
    ],
    ids=["eval", "train", "attention", "overhead", "outputs", "gradients"],
)
def test_a_wrong_result_stops_the_run(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = multihead.torch.MultiheadAttention.forward

    def wrong(layer: Any, *args: Any, **options: Any) -> Any:
        out, weights = right(layer, *args, **options)
        return out * 1.01, weights

    monkeypatch.setattr(multihead.torch.MultiheadAttention, "forward", wrong)
    with pytest.raises(DisagreementError, match="differs by"):
        reach(make(), a_run())


def test_without_torch_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    for one in FACES["torch"]:
        result = reach(one, a_run())
        assert result.verdict == "not measured"
        assert result.reached.note == "torch is not installed"


# the run


def test_a_run_of_the_torch_face(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.set_threads", lambda threads: None)
    monkeypatch.setattr(overhead, "CALLS", 2)
    file = tmp_path / "bench.json"
    run(face="torch", targets=["torch-overhead"], plan=BRIEF, json_file=file)
    text = capsys.readouterr().out
    assert "threads each" in text
    assert "torch 2." in text
    assert "torch-overhead  a whole call" in text
    assert "of 1 targets met" in text
    assert "(N, L, E, H)" not in text
    found = json.loads(file.read_text())
    assert found["settings"]["face"] == "torch"
    assert found["cells"] == []
    (told,) = found["targets"]
    assert told["name"] == "torch-overhead"
    assert told["seconds"][OURS]["median"] == pytest.approx(told["value"] / 1e6)
    assert len(told["seconds"][TORCH]["rounds"]) >= 1


@pytest.mark.parametrize("quick", [False, True])
def test_a_run_has_the_face_s_targets_and_no_grid(
    quick: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.set_threads", lambda threads: None)
    monkeypatch.setattr(
        "benchmarks.reach", lambda target, this: Result(target, Reached(target.bound))
    )
    monkeypatch.setattr("benchmarks.targets.target.Limit.granted", 1.0)
    assert run(face="torch", quick=quick)
    text = capsys.readouterr().out
    names = [one.name for one in FACES["torch"] if one.quick or not quick]
    assert f"{len(names)} of {len(names)} targets met" in text
    assert "(N, L, E, H)" not in text
    column = 13 + max(map(len, names)) + 1
    lines = [line for line in text.splitlines() if line.startswith("met ")]
    assert [line[13:column].rstrip() for line in lines] == names
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


@pytest.mark.parametrize("name", ["name", "a-name-of-more-than-sixteen-characters"])
def test_a_long_name_widens_its_column(name: str) -> None:
    result = Result(target(name=name), Reached(2.0))
    first, second = outcome(result, len(name) + 1).split("\n")
    width = max(16, len(name) + 1)
    assert first == f"{'met':<13}{name:<{width}}what it is"
    assert second.index("target") == 13 + width


def test_the_command_line_chooses_the_face(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("benchmarks.run", lambda **options: asked.update(options) or False)
    assert main(["--face", "torch", "--check", "--targets", "torch-vit"]) == 1
    assert (asked["face"], asked["targets"]) == ("torch", ["torch-vit"])
    assert main(["--quick"]) == 0
    assert (asked["face"], asked["targets"]) == ("numpy", None)
    with pytest.raises(SystemExit) as stop:
        main(["--targets", "torch-vit"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "benchmarks: error: argument --targets: no target begins with 'torch-vit'" in error
