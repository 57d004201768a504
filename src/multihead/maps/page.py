"""One page of HTML with every map of a model in it: it asks nothing of a network."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multihead.checks import wrong, wrong_type
from multihead.maps.codes import packed

_SCRIPTS = ("data.js", "map.js", "page.js")
_SLACK = 1e-2  # by which a row of half precision may miss 1


def page(
    weights: Any,
    tokens: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    title: str = "Attention maps",
    note: str = "",
) -> str:
    """Make a page of HTML that shows where each token looks, in every layer and head.

    The page is one file: no network, no library. It can be used by mouse, touch or keyboard, and
    read aloud. Weights in it are rounded: a weight w comes back within √w / 4095.

    Parameters
    ----------
    weights : ndarray (layers, H, L, S) or sequence of ndarray (H_n, L, S)
        Attention weights of each layer, floats from 0 to 1, as a layer in eval mode returns them
        for ``average_attn_weights=False``.
    tokens : sequence of L str
        The queries.
    keys : sequence of S str, optional
        What is attended to, if not `tokens`.
    title : str, default "Attention maps"
        The heading.
    note : str, optional
        A line below the heading.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    ValueError
        If shapes, tokens and keys disagree, or a weight is not from 0 to 1.
    TypeError
        If weights are no floats or tokens no strings.

    Examples
    --------
    >>> import numpy as np
    >>> import multihead as mh
    >>> from multihead.maps import page
    >>> layer = mh.MultiheadAttention(8, 2, seed=0).eval()
    >>> x = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    >>> _, weights = layer(x, x, x, average_attn_weights=False)
    >>> text = page([weights], ["one", "two", "three"])
    >>> text.startswith("<!doctype html>")
    True
    """
    queries = _words("tokens", tokens)
    seen = queries if keys is None else _words("keys", keys)
    layers = [_layer(f"weights[{n}]", layer) for n, layer in enumerate(weights)]
    if not layers:
        raise wrong("weights", "at least one layer", "none")
    for n, layer in enumerate(layers):
        if layer.shape[1:] != (len(queries), len(seen)):
            expected = f"(H, {len(queries)}, {len(seen)}), by tokens and keys"
            raise wrong(f"weights[{n}]", expected, layer.shape)
    data = {
        "tokens": queries,
        "keys": seen,
        "layers": [{"heads": len(layer), "codes": packed(layer)} for layer in layers],
    }
    part = files(__package__)
    return Template((part / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        note=html.escape(note),
        style=(part / "page.css").read_text(encoding="utf-8"),
        script="".join((part / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        data=_json(data),
    )


def _words(name: str, words: Sequence[str]) -> list[str]:
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise wrong_type(name, "a sequence of str", type(words).__name__)
    if len(words) == 0:
        raise wrong(name, "at least one", "none")
    return list(words)


def _layer(name: str, weights: Any) -> NDArray[Any]:
    layer = np.asarray(weights)
    if layer.dtype.kind != "f":
        raise wrong_type(name, "floats", layer.dtype)
    if layer.ndim != 3 or layer.size == 0:
        way = "; average_attn_weights=False keeps the heads" if layer.ndim == 2 else ""
        raise wrong(name, "(H, L, S)", f"{layer.shape}{way}")
    low, high = float(layer.min()), float(layer.max())
    if not (low >= 0 and high <= 1 + _SLACK):  # NaN is neither
        way = "; dropout is off after layer.eval()" if high > 1 else ""
        raise wrong(name, "weights from 0 to 1", f"{low:.3g} to {high:.3g}{way}")
    return layer


def _json(data: Any) -> str:
    """Write data as JSON that can stand in an element of HTML."""
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
