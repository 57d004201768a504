"""The notebooks of examples, as they are committed; `make notebooks` executes them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
PLACES = re.compile(r"""(?<![\w.:/])(/\w+/\w|~/|[A-Z]:\\)|file:|https?:|localhost""")
ALLOWED = {"multihead", "numpy"}


def cells(path: Path, kind: str) -> list[str]:
    held = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in held if cell["cell_type"] == kind]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_steps", "ragged_and_decoding"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs_and_no_places(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    held: dict[str, Any] = json.loads(text)
    for cell in held["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert cell["metadata"] == {}
    assert len({cell["id"] for cell in held["cells"]}) == len(held["cells"])
    assert set(held["metadata"]) == {"kernelspec", "language_info"}
    assert held["metadata"]["kernelspec"]["name"] == "python3"
    assert not PLACES.search(text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_of_a_notebook_imports_at_its_top_and_only_what_it_says(path: Path) -> None:
    parsed = [ast.parse(code) for code in cells(path, "code")]
    imports = [
        (n, name)
        for n, tree in enumerate(parsed)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else node.names)
    ]
    names = {getattr(name, "name", name).partition(".")[0] for _, name in imports}
    assert {n for n, _ in imports} == {0}
    assert names <= ALLOWED
    assert 'pip install "multihead[plot]"' in cells(path, "markdown")[0]
    assert any(
        isinstance(x, ast.Assert) or "assert_allclose" in ast.dump(x)
        for x in ast.walk(ast.Module([node for tree in parsed for node in tree.body], []))
    )
