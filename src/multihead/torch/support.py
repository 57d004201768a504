"""Which of Hugging Face's models compute attention with a function that is registered."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
# Models that transformers computes with "eager" alone, though a mask and nothing else decides what
# they see: without one it is everything, whatever their modules say of causality.
_MASKED = ("MarkupLMConfig", "Speech2TextConfig", "SplinterConfig", "SwitchTransformersConfig")


@functools.cache
def refusal(config: Any, name: str) -> str | None:
    """Say why models of a config would not compute attention with a function; None if they would.

    Parameters
    ----------
    config : type
        Derived from `transformers.PreTrainedConfig`.
    name : str
        What the function is registered as.
    """
    kinds = [x for x in _subclasses(PreTrainedModel) if x.config_class is config]
    if not kinds:
        return None
    models = f"transformers' {config.__name__} models"
    served = masks_decide(config) or any(
        x._supports_sdpa or _wants_more_than_sdpa(x) for x in kinds
    )
    if not served:
        # they would take our masks for some of another kind, or pass over parts of them
        return f'{models} do not support "sdpa", nor "{name}": use attn_implementation="eager"'
    way_out = (
        'use attn_implementation="sdpa", or for a part of a model '
        f'{{"": "{name}", "vision_config": "sdpa"}}'
    )
    reached = list(_reached(kinds))
    for table in reached:
        if isinstance(table, dict) and "eager" in table and name not in table:
            known = ", ".join(f'"{x}"' for x in table)
            return f'{models} know {known} and not "{name}": {way_out}'
    attentions = [x for x in reached if isinstance(x, type) and "Attention" in x.__name__]
    if attentions and not any(_INTERFACE in _names(x) for x in reached):
        return (
            f"{models} compute attention in {attentions[0].__name__} and not through transformers' "
            f'attention interface, so that "{name}" would not be called: {way_out}'
        )
    return None


def masks_decide(config: Any) -> bool:
    """Whether models of a config are given masks always, and see everything without one."""
    return config.__name__ in _MASKED and config.__module__.startswith("transformers.models.")


def _wants_more_than_sdpa(kind: Any) -> bool:
    """Whether only caps or sinks keep a model from "sdpa": flash attention serves it, too."""
    return bool(kind._supports_flash_attn and kind._supports_attention_backend)


def _subclasses(kind: Any) -> Iterator[Any]:
    for x in kind.__subclasses__():
        yield x
        yield from _subclasses(x)


def _reached(kinds: Iterable[Any]) -> Iterator[Any]:
    """Yield what models are made of: classes, functions, and classes by an attention's name."""
    waiting: list[Any] = list(kinds)
    config, seen = waiting[0].config_class, set()
    while waiting:
        x = waiting.pop()
        if id(x) in seen or (_is_model(x) and x.config_class is not config):
            continue  # models of other configs are asked for themselves
        seen.add(id(x))
        yield x
        if isinstance(x, dict):
            waiting += [] if "eager" in x else x.values()
            continue
        there = vars(sys.modules[x.__module__]) if x.__module__ in sys.modules else {}
        waiting += [there[name] for name in _names(x) if _of_models(there.get(name))]
        if isinstance(x, type):
            waiting += filter(_of_models, x.__bases__)


def _is_model(x: Any) -> bool:
    return isinstance(x, type) and issubclass(x, PreTrainedModel)


def _of_models(x: Any) -> bool:
    if isinstance(x, dict):
        return bool(x) and all(isinstance(y, type) and _of_models(y) for y in x.values())
    if isinstance(x, type):
        return issubclass(x, torch.nn.Module) and x.__module__.split(".")[0] != "torch"
    return inspect.isfunction(x) and x.__module__.startswith("transformers.models.")


@functools.cache
def _parsed(x: Any) -> frozenset[str]:
    # a model's class also names, in `_init_weights`, what other models are made of
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(x.__init__ if _is_model(x) else x)))
    except (OSError, TypeError, SyntaxError):  # there is no source
        return frozenset()
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return frozenset(
        names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    )


def _names(x: Any) -> frozenset[str]:
    return frozenset() if isinstance(x, dict) else _parsed(x)


def is_attention(kind: Any) -> bool:
    """Whether a class attends in methods of its own, through transformers' interface or not."""
    known = {_INTERFACE, "softmax", "scaled_dot_product_attention"}
    return "Attention" in kind.__name__ and _of_models(kind) and bool(known & _names(kind))
