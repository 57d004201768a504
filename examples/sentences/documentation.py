"""Sentences that ship with Python: what its standard library says of its functions and classes."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MODULES = (
    "base64 bisect builtins calendar collections colorsys contextlib copy csv datetime difflib "
    "fnmatch fractions functools glob gzip hashlib heapq html io itertools json math operator os "
    "os.path pathlib pickle platform pprint queue random re secrets shlex shutil signal socket "
    "statistics string struct subprocess sys tempfile textwrap threading time unicodedata "
    "urllib.parse uuid warnings weakref zipfile"
).split()

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
SIGNATURE = re.compile(r"^[\w.]+\(.*?\)(\s*->.*?)?(\n|$|: )", re.DOTALL)  # of what is written in C


@dataclass(frozen=True)
class Entry:
    """A function, class or method, and what is said of it."""

    name: str
    text: str

    def sentences(self) -> list[str]:
        """Divide the prose of the text: examples and tables are left out."""
        found = []
        for paragraph in re.split(r"\n\s*\n", self.text):
            if ">>>" in paragraph or re.search(r"\S {3,}\S|\n\s+\S|^\W", paragraph):
                continue
            found += SENTENCE_END.split(" ".join(paragraph.split()))
        return [x for x in found if x[0].isupper() and x[-1] in ".!?" and len(x.split()) > 3]


def entries(modules: Sequence[str] = MODULES) -> Iterator[Entry]:
    """Go through the documented public members of modules, each text once."""
    seen = set()
    for module in modules:
        for name, member in _members(module):
            text = inspect.cleandoc(getattr(member, "__doc__", None) or "")
            text = SIGNATURE.sub("", text).strip()
            if text and text not in seen:
                seen.add(text)
                yield Entry(name.removeprefix("builtins."), text)


def _members(module: str) -> Iterator[tuple[str, Any]]:
    loaded = importlib.import_module(module)
    public = getattr(loaded, "__all__", None) or [x for x in vars(loaded) if x[0] != "_"]
    for name in sorted(public):
        member = getattr(loaded, name)
        if inspect.isclass(member):
            yield f"{module}.{name}", member
            for part, inner in sorted(vars(member).items()):
                if part[0] != "_" and inspect.isroutine(inner):
                    yield f"{module}.{name}.{part}", inner
        elif inspect.isroutine(member):
            yield f"{module}.{name}", member


def first_sentences(modules: Sequence[str] = MODULES) -> list[tuple[str, str]]:
    """Return names, and the first sentence that says what each is."""
    pairs = ((entry.name, entry.sentences()) for entry in entries(modules))
    return [(name, sentences[0]) for name, sentences in pairs if sentences]
