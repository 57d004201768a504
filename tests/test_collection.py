"""Tests are collected in one order, in every process: xdist refuses to run others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for top in ("tests", "benchmarks/tests") for path in (ROOT / top).rglob("*.py"))


def unordered(node: ast.AST) -> Iterator[int]:
    """Lines of sets that nothing sorts."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in ("sorted", "len"):
            return
        if node.func.id in ("set", "frozenset"):
            yield node.lineno
    if isinstance(node, ast.Set | ast.SetComp):
        yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from unordered(child)


def parametrized(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "parametrize":
            yield node


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_parameters_are_in_the_order_of_a_set(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert [line for call in parametrized(tree) for line in unordered(call)] == []


def test_a_set_is_found_wherever_it_is() -> None:
    found = [
        [*unordered(ast.parse(text))]
        for text in ("[1, *({2} - x)]", "set(x)", "{a for a in x}", "sorted({1} & x)", "[len({1})]")
    ]
    assert found == [[1], [1], [1], [], []]
