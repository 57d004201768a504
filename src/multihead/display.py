"""How objects look in a notebook: small tables of HTML that go with light and dark pages."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multihead.ragged import Ragged
    from multihead.state import LayerState

_BARS = 200  # of a longer batch, so many show it evenly
_CELL = "text-align:left;padding:.1em 1em .1em 0"


def layer_html(layer: LayerState) -> str:
    """Show a layer's options, mode and parameters."""
    parameters = layer.parameters()
    rows = [(name, _shape(x), f"{x.size:,}") for name, x in parameters.items()]
    total = sum(x.size for x in parameters.values())
    size = sum(x.nbytes for x in parameters.values())
    mode = "training" if layer.training else "eval"
    note = f"{layer.dtype}, {mode} mode, {total:,} parameters, {_bytes(size)}"
    return _framed(repr(layer), note, _table(("parameter", "shape", "numbers"), rows))


def ragged_html(batch: Ragged[Any]) -> str:
    """Show how long a batch's sequences are, as a strip of bars, and what they hold."""
    lengths, dtype = batch.lengths.tolist(), getattr(batch.values, "dtype", "")
    step = max(1, -(-len(lengths) // _BARS))
    bars = [(n, lengths[n]) for n in range(0, len(lengths), step)]
    every = "" if step == 1 else f", one bar for every {step} sequences"
    span = f", {min(lengths)} to {max(lengths)} long, {sum(lengths)} in all" if lengths else ""
    count = "1 sequence" if len(lengths) == 1 else f"{len(lengths)} sequences"
    return _framed(repr(batch), f"{dtype}, {count}{span}{every}", _strip(bars))


def _strip(bars: list[tuple[int, int]]) -> str:
    """Draw a bar for each (number, length)."""
    if not bars:
        return ""
    longest = max(1, *(length for _, length in bars))
    width = max(2, min(16, 480 // len(bars)))
    drawn = "".join(
        f'<rect x="{i * width}" y="{40 - 40 * length / longest:.1f}" width="{width - 1}" '
        f'height="{40 * length / longest:.1f}"><title>sequence {n}: {length}</title></rect>'
        for i, (n, length) in enumerate(bars)
    )
    label = f"Lengths of sequences: {', '.join(str(length) for _, length in bars)}"
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{width * len(bars)}" height="40" '
        f'style="display:block" fill="currentColor" fill-opacity="0.6">{drawn}</svg>'
    )


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f'<th scope="col" style="{_CELL}">{escape(head)}</th>' for head in heads)
    lines = ("".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _framed(title: str, note: str, inner: str) -> str:
    return f"<div><code>{escape(title)}</code><br><small>{escape(note)}</small>{inner}</div>"


def _shape(array: Any) -> str:
    return " × ".join(map(str, array.shape))


def _bytes(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
