"""Which modules call PyTorch's attention functions, and which attend in code of their own.

Code is asked, not sources, which need not be there: the names in it, and what they stand for.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch

from multihead.torch.redirecting import is_beside
from multihead.torch.scope import MULTI_HEAD, SCALED_DOT_PRODUCT

_NAMES = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "mm", "einsum"})
_NAMING = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
# code in which nothing is looked for
_OTHERS = frozenset({"torch", "numpy", *sys.stdlib_module_names}) - {"__main__"}
_PARAMETRIZED = "torch.nn.utils.parametrize"  # where a class of its own is made for a module
_OURS = ("multihead.torch.functional", "multihead.torch.module")


class Attending(NamedTuple):
    """A module that attends, and is no attention layer of PyTorch's or ours.

    Attributes
    ----------
    name : str
        Where it is.
    module : torch.nn.Module
    methods : tuple of str
        Those that call PyTorch's functions; none where it attends by itself.
    """

    name: str
    module: torch.nn.Module
    methods: tuple[str, ...]


def attending_modules(model: torch.nn.Module) -> Iterator[Attending]:
    """Yield the modules of a model that call PyTorch's functions, or attend by themselves."""
    known: dict[Any, _Kind] = {}
    for name, module in model.named_modules():
        kind: Any = type(module)
        if _is_known(kind):
            continue
        if kind not in known:
            known[kind] = _read(kind)
        methods = known[kind].methods
        if not methods and "forward" not in vars(module) and _holds(module):
            methods = ("forward",)
        if methods or known[kind].attends:
            yield Attending(name, module, methods)


def has_code_of_its_own(model: torch.nn.Module) -> bool:
    """Whether a model has modules that are not PyTorch's, nor ours."""
    return not all(_is_known(type(x)) for x in model.modules())


def has_forward(module: torch.nn.Module) -> bool:
    """Whether the class of a module has a forward, and it is called."""
    return "forward" not in vars(module) and type(module).forward is not torch.nn.Module.forward


def is_put_on(module: torch.nn.Module, methods: tuple[str, ...]) -> bool:
    """Whether what calls PyTorch's functions is not called: a forward was put on the instance."""
    return methods == ("forward",) and "forward" in vars(module)


def _is_known(kind: Any) -> bool:
    while kind.__module__ == _PARAMETRIZED and kind.__name__.startswith("Parametrized"):
        kind = kind.__bases__[0]
    return kind.__module__ in _OURS or kind.__module__.split(".")[0] == "torch"


def _is_read(x: Any) -> bool:
    """Whether the code of a class or function is looked at."""
    home = x.__module__ or ""
    return home not in _OURS and home.split(".")[0] not in _OTHERS


class _Kind(NamedTuple):
    """What the code of a class does.

    Attributes
    ----------
    methods : tuple of str
        Those that call PyTorch's functions.
    attends : bool
        Whether it attends by itself: a softmax between two products.
    """

    methods: tuple[str, ...]
    attends: bool


class _Code(NamedTuple):
    """What a function does, and names.

    Attributes
    ----------
    calls : bool
        Whether it calls one of PyTorch's functions.
    values : list
        What its names stand for: globals and closures.
    names : set of str
        Its attributes.
    products, softmax : int
        How often it multiplies, and has a softmax.
    """

    calls: bool
    values: list[Any]
    names: set[str]
    products: int
    softmax: int


def _read(kind: Any) -> _Kind:
    """Read what forward comes to, and whatever else calls PyTorch's functions itself."""
    methods: dict[str, list[FunctionType]] = {}
    own: dict[str, list[_Code]] = {}
    for name, function in _methods(kind):
        before = own.setdefault(name, [])
        if not before or "super" in before[-1].names:  # else it is overridden
            before.append(_code(function, kind))
            methods.setdefault(name, []).append(function)
    waiting, reached = ["forward"], set()
    while waiting:
        name = waiting.pop()
        if name in own and name not in reached:
            reached.add(name)
            waiting += [x for code in own[name] for x in code.names]
    whole = {
        name: [code for function in methods[name] for code in _followed(function, kind)]
        for name in reached
    }
    calls = {name for name, codes in (own | whole).items() if any(x.calls for x in codes)}
    codes = [code for name in reached for code in whole[name]]
    softmax, products = sum(x.softmax for x in codes), sum(x.products for x in codes)
    return _Kind(tuple(sorted(calls)), not calls and softmax > 0 and products > 1)


def _methods(kind: Any) -> Iterator[tuple[str, FunctionType]]:
    """Yield the methods of a class and its bases, PyTorch's and those aside that set it up."""
    for base in kind.__mro__:
        if not _is_read(base) or is_beside(base):
            continue
        for name, x in vars(base).items():
            if isinstance(x, FunctionType) and "init" not in name and "reset" not in name:
                yield name, x


def _holds(module: torch.nn.Module) -> bool:
    """Whether a module holds what calls PyTorch's functions, and is no module."""
    for name, x in vars(module).items():
        if name.startswith("_"):
            continue
        found = list(_functions(x))
        if not found and callable(x) and not isinstance(x, type):
            found = [function for _, function in _methods(type(x))]
        if _is_theirs(x) or any(c.calls for function in found for c in _followed(function, None)):
            return True
    return False


def _followed(function: FunctionType, kind: Any) -> Iterator[_Code]:
    """Yield the code of a function, and of those that it names."""
    waiting, seen = [function], set()
    while waiting:
        function = waiting.pop()
        if function not in seen:
            seen.add(function)
            code = _code(function, kind)
            yield code
            waiting += [y for x in code.values for y in _functions(x)]


def _functions(x: Any) -> Iterator[FunctionType]:
    """Yield the functions that a value is, or is a table of; those aside in which none is."""
    if isinstance(x, Mapping) and (type(x) is dict or not isinstance(x, dict)):  # none that loads
        for y in x.values():
            if isinstance(y, FunctionType):
                yield from _functions(y)
    if isinstance(x, functools.partial):
        x = x.func
    if isinstance(x, MethodType):
        x = x.__func__
    if isinstance(x, FunctionType) and _is_read(x):
        yield x


def _is_theirs(x: Any) -> bool:
    x = x.func if isinstance(x, functools.partial) else x
    return x is SCALED_DOT_PRODUCT or x is MULTI_HEAD


def _code(function: FunctionType, kind: Any) -> _Code:
    """Read a function; what has the name of PyTorch's, and is of its class, is not PyTorch's."""
    values, names, spelled = [], set(), set()
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not yet there
            continue
    products = softmax = 0
    for step in _steps(function.__code__):
        name = step.argval
        products += step.argrepr == "@" or step.opname == "BINARY_MATRIX_MULTIPLY"
        if step.opname == "LOAD_CONST" and isinstance(name, str):
            spelled |= {name} & _NAMES
        if step.opname not in _NAMING:
            continue
        products += name in _PRODUCTS
        softmax += "softmax" in name.lower()
        if step.opname == "LOAD_GLOBAL" and name in function.__globals__:
            values.append(function.__globals__[name])
        else:
            names.add(name)
    theirs = any(not hasattr(kind, name) for name in _NAMES & (names | spelled))
    return _Code(theirs or any(map(_is_theirs, values)), values, names, products, softmax)


def _steps(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for x in code.co_consts:
        if isinstance(x, CodeType):
            yield from _steps(x)
