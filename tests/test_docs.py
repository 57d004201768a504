"""What the documentation says runs: code in the pages, examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import multihead

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    if CODE.search(path.read_text())
)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(multihead.__path__, "multihead.")
    # the engine's library lies in the package and looks like an extension module
    if not re.search(r"\.(_|libmultihead)", module.name)
)


def test_the_readme_has_code() -> None:
    assert Path("README.md") in PAGES


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_code_in_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in CODE.findall((ROOT / page).read_text()):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("name", ["multihead", *MODULES])
def test_examples_of_a_module_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def public_objects() -> dict[str, object]:
    """Public functions and classes, and the classes' public members, by dotted name."""
    found: dict[str, object] = {}
    for name in multihead.__all__:
        value = getattr(multihead, name)
        if inspect.ismodule(value):
            for part, inner in vars(value).items():
                if not part.startswith("_") and getattr(inner, "__module__", "") == value.__name__:
                    found[f"{name}.{part}"] = inner
        else:
            found[name] = value
    return {name: value for name, value in found.items() if callable(value)}


PUBLIC = public_objects()
MEMBERS = {
    f"{name}.{part}": member
    for name, value in PUBLIC.items()
    if inspect.isclass(value)
    for part, member in inspect.getmembers(value)
    if not part.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
}


# what a function returns is shown by the function's own example
@pytest.mark.parametrize(
    "name", [name for name in PUBLIC if not name.endswith(("Result", "Cache"))]
)
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>> " in (inspect.getdoc(PUBLIC[name]) or "")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_public_member_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(MEMBERS[name])
