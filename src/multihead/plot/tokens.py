"""Tokens as labels of a map's rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from multihead.checks import wrong, wrong_type

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST = 12


class Words(NamedTuple):
    """What a map's rows and columns are called."""

    queries: list[str]
    keys: list[str]


def words(
    tokens: Sequence[str] | None, keys: Sequence[str] | None, rows: int, columns: int
) -> Words:
    """Check the names of rows and columns; numbers stand for those that are not given."""
    if keys is None and rows == columns:
        keys = tokens
    return Words(_named("tokens", tokens, rows), _named("keys", keys, columns))


def label_axes(axes: Axes, names: Words, left: bool, top: bool) -> None:
    """Write tokens at rows and columns, those of columns rotated, over the map."""
    from multihead.plot.figures import pale

    pale(axes).tick_params(length=0, labelsize=8, pad=2)
    axes.set_yticks(range(len(names.queries)), names.queries if left else [])
    axes.set_xticks(range(len(names.keys)), names.keys if top else [])
    if top:
        axes.xaxis.tick_top()
        axes.tick_params(axis="x", length=0)
        for label in axes.get_xticklabels():
            label.set(rotation=60, ha="left", va="bottom", rotation_mode="anchor")


def _named(name: str, given: Sequence[str] | None, count: int) -> list[str]:
    if given is None:
        return [str(n) for n in range(count)]
    if isinstance(given, str) or not all(isinstance(word, str) for word in given):
        raise wrong_type(name, "a sequence of str", type(given).__name__)
    if len(given) != count:
        raise wrong(name, f"{count} of them, by weights", len(given))
    return [_short(word) for word in given]


def _short(word: str) -> str:
    """Shorten a long word, and keep a dollar from starting a formula."""
    word = word if word.strip() else "␣"
    word = word if len(word) <= _LONGEST else word[: _LONGEST - 1] + "…"
    return word.replace("$", r"\$")
