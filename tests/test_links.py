"""Links between the project's own pages and files lead somewhere: a file, and a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT = {"_build", "generated", "build", ".venv"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not BUILT & set(path.relative_to(ROOT).parts) and ".pytest_cache" not in path.parts
)
FENCE = re.compile(r"^(```+)(?!\{).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)|\b(?:href|src)=\"([^\"]+)\"|^\[[^\]]+\]: (\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,3} (.*)$", re.MULTILINE)  # as deep as the site gives anchors
FOLDERS = "benchmarks|cmake|csrc|docs|examples|fuzz|include|src|tests|tools"
NAMED = re.compile(rf"`((?:{FOLDERS})/[\w/.-]+\.\w+)`")
ELSEWHERE = re.compile(r"[a-z]+:")


def links(page: Path) -> list[str]:
    """What a page links to, but other sites."""
    text = FENCE.sub("", page.read_text())
    text = re.sub(r"`[^`\n]+`", "", text)
    found = ["".join(groups) for groups in LINK.findall(text)]
    return [link for link in found if not ELSEWHERE.match(link)]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub and the site make them, and its own."""
    text = FENCE.sub("", page.read_text())
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", x) for x in HEADING.findall(text)]
    slugs = [re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles]
    repeated = {f"{x}-{n}" for x in slugs for n in range(1, slugs.count(x))}
    return {*slugs, *repeated, *re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    assert [name for name in NAMED.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_links_are_found() -> None:
    found = {page.relative_to(ROOT).as_posix(): links(page) for page in PAGES}
    assert len(found["README.md"]) > 5
    assert sum("#" in link for page in found.values() for link in page) > 10


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A page\n\n## It's `here`\n\n```\n## not here\n```\n")
    good = "[a](there.md) [b](there.md#its-here) [c](#there) <img src='x'> [d](https://x.y/#z)\n"
    page = tmp_path / "page.md"
    page.write_text(f"# There\n\n{good}\n`[e](code.md)`\n\n[f](gone.md) [g](there.md#not-here)\n")
    assert broken(page) == ["gone.md", "there.md#not-here"]
