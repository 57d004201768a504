"""Draw the pictures of `docs/tutorial.md`: `python docs/pictures/tutorial.py [--check]`.

Numbers are those of the page's own example, by the float64 oracle. With ``--check`` nothing is
written, and the exit code is 1 if a picture is not what would be.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

import multihead as mh
from multihead import reference

FOLDER = Path(__file__).parent
INK, FAINT, BLUE, RED = "#222222", "#888888", "#1f4e79", "#9c2f1f"
CELL = 34
PASSES = (
    ("1", "masks", "which keys a query sees", "d mask"),
    ("2", "projections", "q = x Wq + bq, k, v", "d x, d W, d b"),
    ("3", "extra keys", "bias_k, bias_v, zeros", "d bias_k, d bias_v"),
    ("4", "heads", "(N, L, E) to (N, H, L, D)", "and back"),
    ("5", "attention", "P = softmax(q k'), o = P v", "d P, d S, d q, d k, d v"),
    ("6", "output", "y = o Wo + bo", "d o, d Wo, d bo"),
)


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Put a picture together."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, colour: str = INK, size: int = 13, where: str = "") -> str:
    """Write a line."""
    anchor = where or "start"
    style = f'fill="{colour}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, edge: str = "none") -> str:
    """Draw a rectangle."""
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {size} fill="{fill}" stroke="{edge}"/>'


def arrow(x: float, top: float, bottom: float, colour: str) -> str:
    """Draw an arrow from `top` to `bottom`, down or up."""
    back = 7 if bottom > top else -7
    tip = f"M{x:g} {bottom:g} l-4 {-back} h8 z"
    line = f'<path d="M{x:g} {top:g} V{bottom - back:g}" stroke="{colour}" stroke-width="2"/>'
    return line + f'<path d="{tip}" fill="{colour}"/>'


def passes() -> str:
    """Draw the six passes, down in forward and up in backward."""
    parts, width, row = [], 560, 58
    parts += [
        text(70, 20, "forward", BLUE, 13, "middle"),
        text(490, 20, "backward", RED, 13, "middle"),
    ]
    for i, (number, name, forward, backward) in enumerate(PASSES):
        y = 34 + row * i
        parts += [
            box(130, y, 300, 42, "#f4f4f4", "#cccccc"),
            text(142, y + 18, f"{number}  {name}", INK, 14),
            text(142, y + 35, forward, BLUE, 12),
            text(420, y + 35, backward, RED, 12, "end"),
        ]
    bottom = 34 + row * len(PASSES) - 16
    parts += [arrow(70, 34, bottom, BLUE), arrow(490, bottom, 34, RED)]
    parts += [text(70, bottom + 20, "out", BLUE, 13, "middle")]
    parts += [text(490, bottom + 20, "d out", RED, 13, "middle")]
    return svg(width, bottom + 32, "the six passes, forward and backward", parts)


def matrix(
    x: float, y: float, name: str, values: NDArray[np.float64], hidden: NDArray[np.bool_]
) -> list[str]:
    """Draw a matrix: blue above zero, red below, grey where a key is hidden."""
    largest = float(np.abs(np.where(hidden, 0, values)).max())
    parts = [text(x, y - 8, name)]
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            share = abs(value) / largest
            rgb = "31,78,121" if value >= 0 else "156,47,31"
            fill = "#eeeeee" if hidden[i, j] else f"rgba({rgb},{0.08 + 0.72 * share:.2f})"
            left, top = x + CELL * j, y + CELL * i
            parts.append(box(left, top, CELL - 1, CELL - 1, fill))
            if not hidden[i, j]:
                colour = "#ffffff" if share > 0.6 else INK
                parts.append(text(left + CELL / 2, top + 21, f"{value:.2f}", colour, 11, "middle"))
    return parts


def example() -> tuple[reference.Result, NDArray[np.float64]]:
    """Return the page's example, and the gradient that comes in."""
    rng = np.random.default_rng(0)
    layer = mh.MultiheadAttention(8, 2, batch_first=True, dtype="float64", seed=0)
    x, d_out = rng.standard_normal((2, 1, 5, 8))
    given = layer.state_dict()
    return reference.forward(given, x, x, x, num_heads=2, is_causal=True), d_out


def matrices(forward: bool) -> str:
    """Draw what attention makes of the first head, or what its backward does."""
    result, d_out = example()
    core = result.core
    hidden = ~core.visible[0, 0]
    if forward:
        scores = core.scale * core.q @ core.k.swapaxes(-1, -2)
        shown = {"scores S": scores[0, 0], "weights P": core.p[0, 0]}
    else:
        merged = d_out @ result.params["out_proj.weight"]
        d_heads = merged.reshape(1, 5, 2, 4).swapaxes(1, 2)
        d_p = (d_heads @ core.v.swapaxes(-1, -2))[0, 0]
        d_s = reference.attention_backward(core, d_heads).scores[0, 0]
        shown = {"d P": d_p, "d S = P (d P - delta)": d_s}
    parts, step = [], 5 * CELL + 60
    for i, (name, values) in enumerate(shown.items()):
        parts += matrix(4 + step * i, 30, name, values, hidden)
        if i == 0:
            parts.append(text(5 * CELL + 34, 30 + 2.5 * CELL, "→", FAINT, 22, "middle"))
    title = "scores and weights" if forward else "gradients of weights and scores"
    return svg(step + 5 * CELL + 8, 36 + 5 * CELL, f"{title} of one head, causal", parts)


def tiles() -> str:
    """Draw which tiles of keys a block of queries visits, causal, 8 blocks by 8."""
    parts, cell, count = [], 28, 8
    for i in range(count):
        for j in range(count):
            fill = "#eeeeee" if j > i else "#7f9cb8" if j == i else BLUE
            parts.append(box(90 + cell * j, 30 + cell * i, cell - 2, cell - 2, fill))
    top = 30 + cell * 5 - 1
    parts.append(box(89, top, cell * 6, cell, "none", RED))
    parts += [
        text(90, 20, "tiles of 64 keys →", FAINT),
        text(84, top + 18, "one task", RED, 12, "end"),
        text(330, 48, "all visible: no mask is looked at", BLUE, 12),
        text(330, 76, "in part: bits of the mask", "#5d7e9e", 12),
        text(330, 104, "hidden: not computed", FAINT, 12),
    ]
    return svg(540, 38 + cell * count, "tiles of scores under a causal mask", parts)


PICTURES = {
    "tutorial-passes": passes,
    "tutorial-weights": lambda: matrices(forward=True),
    "tutorial-gradients": lambda: matrices(forward=False),
    "tutorial-tiles": tiles,
}


def main() -> int:
    """Write the pictures, or compare them."""
    stale = False
    for name, draw in PICTURES.items():
        path, drawn = FOLDER / f"{name}.svg", draw()
        if "--check" in sys.argv[1:]:
            stale |= not path.exists() or path.read_text() != drawn
        else:
            path.write_text(drawn)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
