"""What a notebook shows of a layer and of a ragged batch."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import multihead as mh


def tree(html: str) -> ElementTree.Element:
    """Read the HTML, which is XML but for the break."""
    return ElementTree.fromstring(html.replace("<br>", "<br/>"))


def test_a_layer_shows_options_and_parameters() -> None:
    layer = mh.MultiheadAttention(16, 2, kdim=6, dropout=0.25, seed=0)
    html = layer._repr_html_()
    rows = [[cell.text for cell in row] for row in tree(html).iter("tr")]
    assert rows[0] == ["parameter", "shape", "numbers"]
    assert ["k_proj_weight", "16 × 6", "96"] in rows
    assert len(rows) - 1 == len(layer.parameters())
    assert "dropout=0.25" in html
    total = sum(x.size for x in layer.parameters().values())
    assert f"float32, training mode, {total} parameters, {4 * total / 1000:.1f} kB" in html
    assert "eval mode" in layer.eval()._repr_html_()


@pytest.mark.parametrize(
    ("lengths", "heights", "note"),
    [
        ([3, 1, 0], ["40.0", "13.3", "0.0"], "float64, 3 sequences, 0 to 3 long, 4 in all"),
        ([2], ["40.0"], "float64, 1 sequence, 2 to 2 long, 2 in all"),
        ([0], ["0.0"], "1 sequence"),
        ([], [], "0 sequences"),
    ],
)
def test_a_batch_shows_its_lengths(lengths: list[int], heights: list[str], note: str) -> None:
    batch = mh.Ragged(np.zeros((sum(lengths), 4)), np.cumsum([0, *lengths]))
    shown = tree(batch._repr_html_())
    bars = list(shown.iter("rect"))
    assert [bar.get("height") for bar in bars] == heights
    assert [bar[0].text for bar in bars] == [f"sequence {n}: {x}" for n, x in enumerate(lengths)]
    assert note in (shown[2].text or "")


def test_a_long_batch_shows_some_of_its_sequences() -> None:
    batch = mh.Ragged(np.zeros((1000, 1)), np.arange(1001))
    html = batch._repr_html_()
    assert len(list(tree(html).iter("rect"))) == 200
    assert "one bar for every 5 sequences" in html
    assert len(html) < 40_000


def test_what_is_shown_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = mh.MultiheadAttention(4, 1)
    monkeypatch.setattr(type(layer), "__repr__", lambda self: "<script>&")
    html = layer._repr_html_()
    assert "<code>&lt;script&gt;&amp;</code>" in html


def test_colours_are_those_of_the_page() -> None:
    html = (
        mh.Ragged(np.zeros((3, 1)), [0, 1, 3])._repr_html_()
        + mh.MultiheadAttention(4, 1)._repr_html_()
    )
    assert not re.search(r"#[0-9a-f]{3,6}|rgb|white|black|background", html)
    assert 'fill="currentColor"' in html
