"""Hugging Face's models whose sequences are shared by ranks, beside one process's."""

from __future__ import annotations

import copy
import pathlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers

from multihead.distributed import Alone, Communicator, ContextParallel, threads
from multihead.torch import parallel
from multihead.torch.sharded_transformers import current
from transformers_models import (
    bert,
    capped,
    lively,
    llama,
    mistral,
    padded,
    registration,
    with_sinks,
)

pytestmark = pytest.mark.timeout(120)

N, LENGTH, SECONDS = 3, 11, 30.0
Result = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with registration():
        yield


def modern_bert() -> Any:
    config = transformers.ModernBertConfig(
        vocab_size=37,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=31,
        local_attention=6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    return transformers.ModernBertModel(config)


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "BERT": (bert, "right"),
    "ModernBERT": (modern_bert, "right"),
    "Llama": (llama, "none"),
    "Llama, padded": (llama, "left"),
    "Mistral": (mistral, "right"),
    "Gemma 2": (capped, "none"),
    "gpt-oss": (with_sinks, "right"),
}


def found_by(model: Any, given: Result, d_out: torch.Tensor) -> Result:
    """Outputs and gradients of parameters."""
    model.zero_grad()
    out = model(**given)[0]
    (out * d_out).sum().backward()
    return {"out": out.detach()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def inputs_of(where: str) -> Result:
    ids, mask = torch.randint(3, 37, (N, LENGTH)), padded(where, N, LENGTH)
    return {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}


def ranks_find(
    ranks: Communicator, model: Any, given: Result, d_out: torch.Tensor, **how: Any
) -> Result:
    model = parallel(copy.deepcopy(model), ranks, **how)
    shared = ContextParallel(ranks, **how)
    own = {name: shared.shard(x, 1) for name, x in given.items()}
    found = found_by(model, own, shared.shard(d_out, 1))
    for name, x in found.items():
        if name == "out":
            found[name] = shared.gather(x, 1)
        else:
            shared.sum(x.numpy())
    return found


def assert_near(found: Result, expected: Result, bound: float = 1e-6) -> None:
    """Whether all is near, of the largest entry: norms are float32 in some of the models."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        largest = max(float(x.abs().max()), 1e-3)  # of BERT's key.bias they are all but 0
        difference = float((found[name] - x).abs().max())
        assert difference <= bound * largest, f"{name}: {difference / largest:.1e}"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", [{"sharding": "zigzag"}, {"scheme": "all_to_all"}], ids=str)
def test_a_model_is_that_of_one_process(name: str, how: dict[str, Any]) -> None:
    make, where = MODELS[name]
    model = lively(make())
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # of float64
    given = inputs_of(where)
    model.set_attn_implementation("multihead")
    out = model(**given)[0]
    d_out = torch.randn_like(out)
    if where != "none":  # what is padding has no output
        d_out = d_out * given["attention_mask"][..., None]
    expected = found_by(model, given, d_out)
    expected["out"] = expected["out"] * (d_out != 0)
    size = 2 if "scheme" in how else 3
    for found in threads.run(
        size, lambda ranks: ranks_find(ranks, model, given, d_out, **how), timeout=SECONDS
    ):
        found["out"] = found["out"] * (d_out != 0)
        assert_near(found, expected)


def on_ranks(program: Callable[[Communicator], Any], size: int = 2) -> list[Any]:
    return threads.run(size, program, timeout=SECONDS)


def part_of(ranks: Communicator, x: torch.Tensor) -> torch.Tensor:
    shared: torch.Tensor = ContextParallel(ranks, sharding="zigzag").shard(x, 1)
    return shared


def test_positions_of_the_shard_may_be_given() -> None:
    model = lively(llama())
    ids, places = torch.randint(3, 37, (N, LENGTH)), torch.arange(LENGTH)[None]

    def program(ranks: Communicator) -> bool:
        own = parallel(copy.deepcopy(model), ranks, sharding="zigzag")
        made = own(part_of(ranks, ids)).logits
        given = own(part_of(ranks, ids), position_ids=part_of(ranks, places)).logits
        embedded = own(inputs_embeds=own.model.embed_tokens(part_of(ranks, ids))).logits
        return torch.equal(made, given) and torch.equal(made, embedded)

    assert on_ranks(program) == [True, True]


REFUSED: dict[str, tuple[Callable[[torch.Tensor], dict[str, Any]], str]] = {
    "labels": (lambda ids: {"labels": ids}, "labels: expected None"),
    "cache": (lambda _: {"use_cache": True}, "use_cache: expected none"),
    "old keys": (
        lambda _: {"past_key_values": transformers.DynamicCache()},
        "past_key_values: expected none",
    ),
    "weights": (lambda _: {"output_attentions": True}, "output_attentions: expected none"),
    "generation": (lambda _: {"logits_to_keep": 1}, "logits_to_keep: expected none"),
    "packing": (
        lambda ids: {"position_ids": torch.zeros_like(ids)},
        "position_ids: expected those of the shard",
    ),
    "packed lengths": (
        lambda ids: {"cu_seq_lens_q": torch.tensor([0, ids.numel()])},
        "cu_seq_lens_q: expected none",
    ),
    "whole mask": (
        lambda ids: {"attention_mask": torch.ones(len(ids), LENGTH)},
        r"attention_mask: expected \(3, ",
    ),
    "four axes": (
        lambda ids: {"attention_mask": torch.ones(len(ids), 1, 2, 2)},
        r"attention_mask: expected \(3, ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_call_cannot_have(case: str) -> None:
    make, message = REFUSED[case]
    model, ids = llama(), torch.randint(3, 37, (N, LENGTH))

    def program(ranks: Communicator) -> bool:
        own = parallel(copy.deepcopy(model), ranks, sharding="zigzag")
        part = part_of(ranks, ids)
        with pytest.raises(ValueError, match=message):
            own(part, **make(part))
        return bool(torch.isfinite(own(part).logits).all())  # the scope was left

    assert on_ranks(program) == [True, True]


def test_an_error_on_one_rank_is_one_on_all() -> None:
    model, ids = llama(), torch.randint(3, 37, (N, LENGTH))

    def program(ranks: Communicator) -> None:
        own = parallel(copy.deepcopy(model), ranks)
        options = {"use_cache": True} if ranks.rank else {}
        with pytest.raises(ValueError, match="use_cache: expected none"):
            own(ids, **options)

    on_ranks(program)


def test_an_error_within_a_model_leaves_nothing_behind() -> None:
    model, others = lively(llama()), lively(llama())
    ids = torch.randint(1, 10, (2, 7))
    expected = others(ids).logits.detach()
    parallel(model, Alone())
    block = model.model.layers[1]
    block.register_forward_pre_hook(fails)
    with pytest.raises(ZeroDivisionError):
        model(ids)
    # a scope that was left open would be that of the next model's masks
    assert torch.equal(others(ids, attention_mask=torch.ones_like(ids)).logits.detach(), expected)
    assert current() is None


def fails(*_: Any) -> None:
    raise ZeroDivisionError


def test_masks_of_another_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    made = modeling_llama.create_causal_mask
    monkeypatch.setattr(
        modeling_llama,
        "create_causal_mask",
        lambda **options: made(**options, or_mask_function=lambda b, h, q, k: q == k),
    )
    model, ids = llama(), torch.randint(3, 37, (N, LENGTH))

    def program(ranks: Communicator) -> None:
        own = parallel(copy.deepcopy(model), ranks)
        with pytest.raises(ValueError, match="mask_function: expected a causal or bidirectional"):
            own(ids)

    on_ranks(program)


def of_length(kind: str) -> Any:
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4}
    return llama(rope_parameters=rope)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of_length("dynamic"), "depend on the length"),
        (lambda: torch.nn.Linear(2, 2), "a model with layers of multihead.torch"),
        (lambda: torch.nn.TransformerEncoderLayer(4, 2), "accelerate"),
        (lambda: transformers.BertForSequenceClassification(bert().config), "one token for all"),
    ],
)
def test_what_a_model_cannot_have(make: Callable[[], Any], message: str) -> None:
    model = make()

    def program(ranks: Communicator) -> None:
        with pytest.raises(ValueError, match=message):
            parallel(model, ranks)

    on_ranks(program, 1)


def test_models_are_saved_copied_and_made_whole_again(tmp_path: pathlib.Path) -> None:
    model = lively(llama())
    model.set_attn_implementation("multihead")
    ids = torch.randint(3, 37, (N, LENGTH))
    before = model(ids).logits

    def program(ranks: Communicator) -> None:
        parallel(model, ranks)
        model.save_pretrained(tmp_path)
        with pytest.raises(TypeError, match=r"state_dict\(\)"):
            pickle.dumps(model)
        assert torch.allclose(copy.deepcopy(model)(ids).logits, before)
        model.set_attn_implementation("sdpa")
        with pytest.raises(ValueError, match="attn_implementation: expected 'multihead'"):
            model(ids)
        model.set_attn_implementation("multihead")
        parallel(model, None)

    on_ranks(program, 1)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.allclose(again(ids).logits, before)
    assert torch.equal(model(ids).logits, before)
    pickle.dumps(model)


def test_layers_are_computed_again_from_checkpoints() -> None:
    model = lively(llama()).train()
    ids, d_out = torch.randint(3, 37, (N, LENGTH)), torch.randn(N, LENGTH, 41).double()
    expected = found_by(copy.deepcopy(model), {"input_ids": ids}, d_out)
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
    for found in on_ranks(
        lambda ranks: ranks_find(ranks, model, {"input_ids": ids}, d_out, sharding="zigzag")
    ):
        assert_near(found, expected)
