"""What the documentation says runs: code in the pages, examples in the docstrings."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import multihead

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_C = re.compile(r"^```c\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_CODE = re.compile(r"```[ \t]*(?:\{[\w-]+\}[ \t]*)?(?:py|c\b|pycon|ipython)")
BUILT = {"_build", "generated"}
TEXTS = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if not BUILT & set(path.relative_to(ROOT).parts)
)
PAGES = [path for path in TEXTS if CODE.search((ROOT / path).read_text())]
C_PAGES = [path for path in TEXTS if IN_C.search((ROOT / path).read_text())]
# JAX has no versions for the oldest Pythons
WITHOUT_JAX = find_spec("jax") is None
OF_JAX = re.compile(r"^(?:import jax|from multihead\.jax)\b", re.MULTILINE)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(multihead.__path__, "multihead.")
    # the engine's libraries lie in the package and look like extension modules; what starts MPI
    # runs where that is wanted
    if not re.search(r"\.(_|libmultihead|distributed\.mpi)", module.name)
    if not (WITHOUT_JAX and module.name.startswith("multihead.jax"))
)


def test_the_readme_has_code() -> None:
    assert Path("README.md") in PAGES


def linked_pages(page: Path) -> set[Path]:
    """Pages in the tables of contents of a page."""
    tables = re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    names = [line.strip() for table in tables for line in table.splitlines()]
    return {page.parent / f"{name}.md" for name in names if name and name[0] != ":"}


def test_every_page_is_in_a_table_of_contents() -> None:
    docs = ROOT / "docs"
    reached, left = set(), {docs / "index.md"}
    while left:
        page = left.pop()
        reached.add(page)
        left |= linked_pages(page) - reached
    assert reached == {ROOT / path for path in TEXTS if path.parts[0] == "docs"}


def test_the_public_modules_are_named_alike_everywhere() -> None:
    expected = {f"multihead{space}" for space in SPACES}
    named = re.compile(r"\bmultihead(?:\.[a-z_]+)*")
    listed = re.findall(r"^   (multihead[.\w]*)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert set(listed) == expected
    policy = (ROOT / "docs" / "policies.md").read_text().partition("`__all__` of ")[2]
    assert set(named.findall(policy.partition("those of the")[0])) == expected
    checked = (ROOT / "docs" / "_extensions" / "complete.py").read_text()
    modules = re.search(r"^MODULES = (\(.*?\))$", checked, re.M | re.S)
    assert modules
    assert ast.literal_eval(modules[1]) == SPACES  # `make docs` finds that each name has a page


def test_the_tutorial_s_pictures_are_its_numbers() -> None:
    command = [sys.executable, "docs/pictures/tutorial.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_no_code_in_a_page_is_left_out(page: Path) -> None:
    text = (ROOT / page).read_text()
    found = len(CODE.findall(text)) + len(IN_C.findall(text))
    assert len(ANY_CODE.findall(text)) == found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.export calls
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_code_in_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in CODE.findall((ROOT / page).read_text()):
        if WITHOUT_JAX and OF_JAX.search(block):
            continue
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", C_PAGES, ids=str)
def test_a_c_program_in_a_page_runs(page: Path, tmp_path: Path) -> None:
    flags = subprocess.run(
        [sys.executable, "-m", "multihead", "config", "--cflags", "--libs"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.split()
    for number, source in enumerate(IN_C.findall((ROOT / page).read_text())):
        program = tmp_path / f"program{number}"
        (tmp_path / "program.c").write_text(source)
        strict = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
        if "int main(" not in source:  # a function, which test_readme calls
            strict += ["-shared", "-fPIC"]
        command = ["cc", *strict, tmp_path / "program.c", *flags, "-o", program]
        subprocess.run(command, timeout=60, check=True)
        if "-shared" in strict:
            continue
        printed = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
        assert printed.returncode == 0, printed.stderr
        assert printed.stdout


@pytest.mark.parametrize("name", ["multihead", *MODULES])
def test_examples_of_a_module_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


SPACES = (
    "",
    ".functional",
    ".reference",
    ".checkpoint",
    ".maps",
    ".plot",
    ".torch",
    ".jax",
    ".distributed",
    ".distributed.threads",
    ".distributed.process_group",
    ".distributed.mpi",
    ".bnns",
)
STARTS_MPI = ".distributed.mpi"  # when it is imported, in a process of which others are forked
INSTALLED = tuple(x for x in SPACES if x != STARTS_MPI and not (WITHOUT_JAX and x == ".jax"))


def public_objects() -> dict[str, object]:
    """Public functions and classes by dotted name."""
    found: dict[str, object] = {}
    for space in INSTALLED:
        module = importlib.import_module(f"multihead{space}")
        for name in getattr(module, "__all__", ()):
            found[f"multihead{space}.{name}"] = getattr(module, name)
    return {name: value for name, value in found.items() if callable(value)}


PUBLIC = public_objects()
FROM_CALLS = ("Result", "Cache", "Gradients")  # shown by the examples of the functions
OF_CTYPES = ("ALLOCATE", "FREE")  # types of C functions, which hold no docstring
MEMBERS = {
    f"{name}.{part}": member
    for name, value in PUBLIC.items()
    if inspect.isclass(value)
    for part, member in inspect.getmembers(value)
    if getattr(member, "__module__", None) != "torch.nn.modules.module"
    if not part.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
}


@pytest.mark.parametrize(
    "name", [name for name in PUBLIC if not name.endswith((*FROM_CALLS, *OF_CTYPES))]
)
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>> " in (inspect.getdoc(PUBLIC[name]) or "")


@pytest.mark.parametrize("space", INSTALLED)
def test_a_public_module_says_what_it_has(space: str) -> None:
    module = importlib.import_module(f"multihead{space}")
    assert module.__doc__
    names = module.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(module, name) for name in names)


@pytest.mark.parametrize("name", [*PUBLIC, *MEMBERS])
def test_help_shows_what_may_be_given(name: str) -> None:
    shown = (PUBLIC | MEMBERS)[name]
    if inspect.isroutine(shown) or inspect.isclass(shown):
        assert "unknown_options" not in pydoc.render_doc(shown)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_public_member_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(MEMBERS[name])
