"""A Hugging Face model whose sequences are shared by ranks: what it is checked for and given."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from multihead.checks import wrong, wrong_type
from multihead.distributed import ContextParallel
from multihead.distributed.agreement import agree_all
from multihead.distributed.places import numbers_of_all, positions_of
from multihead.torch.hugging_face import NAME
from multihead.torch.sharded_transformers import ATTRIBUTE, SCOPES, Scope, current
from multihead.torch.support import masks_decide

_LAYERS = ("full_attention", "sliding_attention")
_OF_SEQUENCES = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")
_BY_LENGTH = ("dynamic", "longrope")  # kinds of rotary positions
_OF_TOKENS = ("MaskedLM", "TokenClassification")  # labels that are not shifted
_ABSENT = (
    "past_key_values",
    "use_cache",
    "output_attentions",
    "logits_to_keep",
    "encoder_hidden_states",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "position_bias",
    "head_mask",
)


def check(model: Any, parallel: ContextParallel | None) -> None:
    """Raise unless attention is all that mixes the tokens of a model, and ours computes it.

    Raises
    ------
    ValueError
    """
    if parallel is None:
        return
    if NAME not in ALL_ATTENTION_FUNCTIONS:
        raise wrong("model", "a call of multihead.torch.register_transformers() before", "none")
    kind, config = type(model).__name__, model.config
    problem = _problem(model, kind, config)
    if problem is not None:
        raise wrong("model", "one whose tokens are mixed by its attention alone", problem)
    if config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)


def _problem(model: Any, kind: str, config: Any) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return f"{kind}, of an encoder and a decoder"
    if getattr(type(config), "sub_configs", None):
        return f"{kind}, of several models: share its text model"
    if kind.endswith(_OF_SEQUENCES):
        return f"{kind}, which reads one token for all: share the model below it"
    if masks_decide(type(config)):
        return f"{kind}, which no attention but its masks' decides"
    others = set(getattr(config, "layer_types", None) or ()) - set(_LAYERS)
    if others:
        return f"{kind} with layers of {', '.join(sorted(others))}"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{kind}, which takes no position_ids: each rank's would begin at 0"
    for name, x in model.named_modules():
        if isinstance(x, torch.nn.modules.conv._ConvNd):
            return f"{type(x).__name__} {name!r}"
        turned = getattr(x, "rope_type", None)
        kinds = turned.values() if isinstance(turned, dict) else [turned]
        if any(one in _BY_LENGTH for one in kinds):
            return f"rotary positions {name!r} that depend on the length ({', '.join(_BY_LENGTH)})"
    return None


def share(model: Any, parallel: ContextParallel | None) -> None:
    """Set, or undo, by which ranks the sequences of a checked model are shared."""
    for x in model.modules():
        if isinstance(x, PreTrainedModel):
            _unhook(x)
            if parallel is not None:
                x.register_forward_pre_hook(_enter, with_kwargs=True)
                x.register_forward_hook(_leave, always_call=True)
        if parallel is not None:
            setattr(x, ATTRIBUTE, parallel)
        else:
            vars(x).pop(ATTRIBUTE, None)


def _unhook(module: Any) -> None:
    hooks = [(module._forward_pre_hooks, _enter), (module._forward_hooks, _leave)]
    beside = [module._forward_pre_hooks_with_kwargs, module._forward_hooks_always_called]
    for (known, ours), more in zip(hooks, beside, strict=True):
        for number in [number for number, hook in known.items() if hook is ours]:
            known.pop(number)
            more.pop(number, None)


def _enter(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Make positions and padding of the whole, and enter the scope, as a forward pre-hook."""
    names = inspect.signature(module.forward).parameters
    given = dict(zip(names, args, strict=False)) | kwargs
    outer = current()
    if outer is None:
        scope = _agreed(module, given)
    else:
        scope = Scope(module, outer.tokens, outer.padding, outer.sights)
    if "use_cache" in names:
        given["use_cache"] = False
    SCOPES.stack.append(scope)
    return (), given


def _agreed(module: Any, given: dict[str, Any]) -> Scope:
    """Agree with the other ranks on a call, and complete what it is given."""
    parallel: ContextParallel = getattr(module, ATTRIBUTE)
    error: Exception | None = None
    tokens, said = (0, 0), dict[str, Any]()
    try:
        tokens = _tokens(module, given)
        said = {"batch": tokens[0], "position_ids": given.get("position_ids") is not None}
        said |= {"scheme": parallel.scheme, "sharding": parallel.sharding}
        said |= {"training": module.training}
    except Exception as found:
        error = found
    agree_all(parallel.communicators, said, error)

    mask = given.get("attention_mask")
    hides = mask is not None and not bool(mask.all())
    told = numbers_of_all(parallel, (tokens[1], int(hides), int(mask is not None)))
    places = torch.from_numpy(positions_of(parallel, told[:, 0], "input_ids"))[None]
    if given.get("position_ids") is None:
        given["position_ids"] = places
    elif not told[:, 2].all():
        _check_positions(parallel, given["position_ids"], places)
    padding = None
    if mask is None:  # or transformers takes positions that do not go on for packed sequences
        mask = torch.ones(tokens, dtype=torch.int64)
    if told[:, 1].any():
        padding = parallel.gather((mask != 0).contiguous(), axis=1)[:, None, None]
    given["attention_mask"] = mask
    return Scope(module, tokens, padding)


def _leave(module: Any, *_: Any) -> None:
    """Leave the scope, as a forward hook that is called after errors, too."""
    if SCOPES.stack and SCOPES.stack[-1].owner is module:
        SCOPES.stack.pop()


def _tokens(module: Any, given: dict[str, Any]) -> tuple[int, int]:
    """Return N and L_r of a call, or raise for what is not computed over ranks."""
    kind = type(module).__name__
    if module.config._attn_implementation != NAME:
        raise wrong("attn_implementation", repr(NAME), repr(module.config._attn_implementation))
    for name in _ABSENT:
        value = given.get(name)
        if value is not None and value is not False and not (type(value) is int and value == 0):
            raise wrong(
                name, f"none: {kind} is shared by ranks, see parallel()", type(value).__name__
            )
    if getattr(module.config, "output_attentions", False):
        raise wrong("output_attentions", "False in the config of a model over ranks", True)
    shifted = given.get("shift_labels") is not None or any(x in kind for x in _OF_TOKENS)
    if given.get("labels") is not None and not shifted:
        way = "None, as labels are shifted before they are sharded (shift_labels, or the loss of"
        raise wrong("labels", f"{way} logits)", "some")
    x = next((given[k] for k in ("input_ids", "inputs_embeds") if given.get(k) is not None), None)
    if x is None:
        raise wrong("input_ids", "this rank's tokens, or inputs_embeds", None)
    tokens = (int(x.shape[0]), int(x.shape[1]))
    mask = given.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or tuple(mask.shape) != tokens):
        got = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise wrong("attention_mask", f"{tokens} of this rank's own tokens", got)
    places = given.get("position_ids")
    if places is not None and not isinstance(places, torch.Tensor):
        raise wrong_type("position_ids", "a tensor", type(places).__name__)
    counted = any(hasattr(x, "create_position_ids_from_input_ids") for x in module.modules())
    if counted and given.get("position_ids") is None:
        expected = f"those of this rank's tokens, as {kind} counts from its padding_idx + 1"
        raise wrong("position_ids", expected, None)
    return tokens


def _check_positions(parallel: ContextParallel, given: torch.Tensor, places: torch.Tensor) -> None:
    """Raise on all ranks if positions restart, or are not those of the shard, on one of them."""
    bad = not bool((given == places).all()) if given.shape[-1:] == places.shape[-1:] else True
    if numbers_of_all(parallel, (int(bad),)).any():
        expected = "those of the shard (left out, they are made); packed sequences are not sharded"
        raise wrong("position_ids", expected, "others" if bad else "others on another rank")
