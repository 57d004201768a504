"""Write the tree of the sources into docs/architecture.md: `python tools/tree.py [--check]`.

Each line says a file's own first sentence, its docstring's or its first comment's.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
FOLDERS = {
    "csrc/kernels": "the arithmetic, compiled once for each instruction set",
    "csrc/engine": "plans the work, owns memory and threads",
    "csrc/platform": "what one system, processor or compiler has and another has not",
    "csrc/faces": "what every face shares",
    "csrc/bnns": "face: Apple's C functions",
    "csrc/python": "face: NumPy's arrays and PyTorch's tensors",
    "csrc/xla": "face: custom calls of XLA, for JAX; built where jaxlib is",
    "csrc": "the table through which faces reach the engine",
    "src/multihead": "what users import: checks arguments, allocates results, calls the engine",
    "src/multihead/torch": "PyTorch's face",
    "src/multihead/jax": "JAX's face",
    "src/multihead/distributed": "attention past one process: sequences sharded over ranks",
    "src/multihead/cli": "the command line: `multihead`",
    "src/multihead/cli/check": "`multihead check`",
    "src/multihead/cli/bench": "`multihead bench`",
    "src/multihead/bnns": "Apple's BNNS API through ctypes",
    "src/multihead/reference": "the layer in plain float64 NumPy: the oracle",
    "src/multihead/plot": "pictures of attention, by matplotlib",
    "src/multihead/maps": "attention maps of a model, as a page for a browser",
    "src/multihead/signatures": "what type checkers see of the calls",
    "benchmarks": "what `make bench` runs; no part of the package",
    "tools": "the scripts behind the Makefile",
    "tools/sanitize": "the engine under the compilers' sanitizers",
}
WIDTH = 30
SYSTEM = re.compile(r"_(posix|windows|linux|other)$")


def first_sentence(text: str) -> str:
    """Return a text's first sentence, without its full stop."""
    words = " ".join(text.split())
    return re.split(r"(?<=[a-z0-9)`\"'])[.;](?:\s|$)", words, maxsplit=1)[0].rstrip(".")


def described(path: Path) -> str:
    """Say what a file is, in its own words."""
    text = path.read_text()
    if path.suffix == ".py":
        return first_sentence(ast.get_docstring(ast.parse(text)) or "")
    comment = []
    for line in text.splitlines():
        if not line.startswith(("//", "#!", "# ")):
            break
        if not line.startswith("#!"):
            comment.append(re.sub(r"^(//|#) ?", "", line))
    return first_sentence("\n".join(comment).partition("\n\n")[0])


def lines_of(folder: str) -> Iterator[str]:
    """List a folder: a header stands for the source beside it."""
    yield f"{folder}/".ljust(WIDTH) + f" {FOLDERS[folder]}"
    files: dict[str, list[Path]] = {}
    for path in sorted((ROOT / folder).iterdir()):
        if path.suffix in (".h", ".cpp"):  # a header, its source, or one for each system
            files.setdefault(SYSTEM.sub("", path.stem), []).append(path)
        elif path.suffix in (".py", ".sh"):
            files[path.name] = [path]
    for stem, paths in files.items():
        endings = sorted({path.suffix[1:] for path in paths}, reverse=True)
        name = f"{stem}.{endings[0]}" if len(endings) == 1 else f"{stem}.{{{','.join(endings)}}}"
        name = paths[0].name if paths[0].suffix in (".py", ".sh") else name
        in_order = sorted(paths, key=lambda path: path.suffix != ".h")
        said = next(filter(None, map(described, in_order)), "")
        if said:
            yield f"  {name}".ljust(WIDTH) + f" {said}"
        elif name != "__init__.py":
            raise SystemExit(f"{folder}/{name}: does not begin by saying what it is")


def tree() -> str:
    """Return the whole tree."""
    return "\n".join("\n".join(lines_of(folder)) for folder in FOLDERS) + "\n"


def main() -> None:
    """Rewrite the page, or check that it is up to date."""
    page = PAGE.read_text()
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    wanted = page[:start] + tree() + page[end:]
    if "--check" not in sys.argv:
        PAGE.write_text(wanted)
    elif wanted != page:
        raise SystemExit("docs/architecture.md: the tree is old; run python tools/tree.py")


if __name__ == "__main__":
    main()
