"""Write the table of Hugging Face's families into docs/torch.md: `python tools/families.py`.

It comes from `tests/families.py`, each line of which `tests/test_torch_families.py` runs; with
`--check` nothing is written, and the exit code is 1 if the document is not what would be.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "torch.md"
BEGIN, END = "<!-- families -->\n", "<!-- /families -->\n"

sys.path.insert(0, str(ROOT / "tests"))

from families import BEAMS, FAMILIES, GENERATING, REFUSED, Family  # noqa: E402 (after the path)


def row(name: str, family: Family) -> str:
    """Return what was run of one family."""
    sides = "left, right" if family.kind == "decoder" else "right"
    padded = sides if family.kind in {"decoder", "encoder", "encoder-decoder"} else "yes"
    caches = "dynamic, static" if family.kind in GENERATING else "-"
    beams = ", beams" if name in BEAMS else ""
    cells = (f"`{name}`", family.kind, padded, "yes", caches + beams, "yes", family.note)
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def table() -> str:
    """Return the table, and what is not served."""
    lines = [
        f"{len(FAMILIES)} families:",
        "",
        "| family | kind | inference, padded | training | generation, caches | weights | notes |",
        "|---|---|---|---|---|---|---|",
        *(row(name, FAMILIES[name]) for name in sorted(FAMILIES)),
        "",
        "Not served, with an error that says so where it is set, and names what serves them:",
        "",
    ]
    for why, names in REFUSED.items():
        lines.append(f"- {', '.join(f'`{x}`' for x in sorted(names))}: {why}.")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table, or compare it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = before + BEGIN + table() + END + after
    if "--check" in sys.argv[1:]:
        return int(made != text)
    DOCUMENT.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
