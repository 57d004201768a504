"""What type checkers are told: that the package has types, and that they are those of the code."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

import multihead as mh
from multihead import functional, signatures


def test_the_package_says_that_it_has_types() -> None:
    assert (files("multihead") / "py.typed").is_file()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("layer_init", mh.MultiheadAttention.__init__),
        ("layer_call", mh.MultiheadAttention.__call__),
        ("layer_backward", mh.MultiheadAttention.backward),
        ("attention_call", functional.scaled_dot_product_attention),
        ("attention_backward", functional.scaled_dot_product_attention_backward),
    ],
)
def test_overloads_have_the_names_order_and_defaults_of_the_code(
    name: str, function: Callable[..., Any]
) -> None:
    parameters = inspect.signature(function).parameters.values()
    expected = [x for x in parameters if x.kind is not x.VAR_KEYWORD]
    home = sys.modules[getattr(signatures, name).__module__]
    body = ast.parse(inspect.getsource(home)).body
    found = [x for x in body if isinstance(x, ast.FunctionDef) and x.name == name]
    assert len(found) == 1 or len(found) > 3
    for overload in found[: max(len(found) - 1, 1)]:  # the last of several is what they share
        arguments = overload.args
        positional = [*arguments.posonlyargs, *arguments.args]
        assert [x.arg for x in (*positional, *arguments.kwonlyargs)] == [x.name for x in expected]
        last = positional[len(positional) - len(arguments.defaults) :]
        plain = dict(zip((x.arg for x in last), arguments.defaults, strict=True))
        named = zip((x.arg for x in arguments.kwonlyargs), arguments.kw_defaults, strict=True)
        for argument, default in (plain | dict(named)).items():
            if default is not None:
                value = ast.literal_eval(default)
                assert value == function_default(expected, argument), argument


def function_default(parameters: list[inspect.Parameter], name: str) -> object:
    return next(x.default for x in parameters if x.name == name)
