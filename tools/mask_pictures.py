"""Draw what the options of attention show to each query: `python tools/mask_pictures.py`.

Rows are queries, columns keys, as the float64 oracle weighs them: the darker, the larger a weight,
for scores that are all equal. The pictures of `docs/options.md`; with `--check` nothing is written,
and the exit code is 1 if one of them is not what would be.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from multihead import reference

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
CELL = 9
QUERIES, KEYS = 12, 12
CALLS: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "window": {"window": (3, 1)},
    "causal-window": {"is_causal": True, "window": (3, None)},
    "offset": {"is_causal": True, "query_positions": [KEYS - 5], "queries": 5},
    "lengths": {"key_lengths": [8]},
    "alibi": {"is_causal": True, "alibi_slopes": [0.4]},
    "sinks": {"is_causal": True, "sinks": [1.5]},
}


def weights(queries: int = QUERIES, **rules: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (L, S) of equal scores, and what a sink takes of each row (L,)."""
    q, k = np.zeros((1, 1, queries, 1)), np.zeros((1, 1, KEYS, 1))
    result = reference.attention(q, k, k, **rules)
    return result.weights[0, 0], result.sunk[0, 0]


def picture(name: str) -> str:
    """Draw one call as SVG: a square for each query and key, in grey where it is hidden."""
    found, sunk = weights(**CALLS[name])
    columns = [*found.T]
    if "sinks" in CALLS[name]:
        columns = [sunk, *columns]  # beside the keys, with a gap
    gap = CELL // 2 if len(columns) > KEYS else 0
    width, height = CELL * len(columns) + gap + 1, CELL * len(found) + 1
    squares = []
    for j, column in enumerate(columns):
        for i, weight in enumerate(column):
            share = weight / max(found[i].max(), sunk[i], 1e-9)
            fill = "#eeeeee" if weight == 0 else f"rgba(31,78,121,{0.25 + 0.75 * share:.2f})"
            x = CELL * j + (gap if j > 0 else 0) + 1
            squares.append(
                f'<rect x="{x}" y="{CELL * i + 1}" width="{CELL - 1}" height="{CELL - 1}" '
                f'fill="{fill}"/>'
            )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    title = f"<title>{name}: queries in rows, keys in columns</title>"
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', title, *squares, "</svg>"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the pictures, or compare them."""
    stale = False
    FOLDER.mkdir(exist_ok=True)
    for name in CALLS:
        path, drawn = FOLDER / f"{name}.svg", picture(name)
        if "--check" in sys.argv[1:]:
            stale |= not path.exists() or path.read_text() != drawn
        else:
            path.write_text(drawn)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
