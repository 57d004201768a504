"""One map, and the maps of all heads: of tokens, or of one query over an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multihead.checks import wrong, wrong_type
from multihead.plot.figures import bare, new_figure
from multihead.plot.images import outline
from multihead.plot.scale import Scale
from multihead.plot.tokens import Words, label_axes, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_map(
    weights: Any,
    tokens: Sequence[str] | None = None,
    *,
    keys: Sequence[str] | None = None,
    image: Any = None,
    query: tuple[int, int] | None = None,
    title: str | None = None,
    size: float | None = None,
) -> Figure:
    """Draw one head's attention: between tokens, or from one patch of an image.

    Colour says how many times its even share 1/S a weight is, from 1, which has no colour, to the
    largest of the picture, at least 4. Weights of exactly 0 between tokens, which a mask hides, are
    grey.

    Parameters
    ----------
    weights : ndarray, (L, S) or (rows, columns)
        Weights of tokens, a row for each query; with `image`, those of one query over a grid of
        patches that covers the image.
    tokens : sequence of L str, optional
        The queries; numbers by default. Long ones are shortened with an ellipsis.
    keys : sequence of S str, optional
        What is attended to; `tokens` by default where L = S.
    image : ndarray, (height, width), optional
        Grey; larger is darker. The map is then drawn over it.
    query : tuple of int, optional
        Row and column of the patch that looks, which is framed. Only with `image`.
    title : str, optional
    size : float, optional
        Width of the map in inches; by default 0.26 for each key, from 3 to 12.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, tied to no window; ``figure.savefig(path)`` writes it.

    Raises
    ------
    ValueError
        If shapes, tokens and keys disagree, or weights are negative or not finite.
    TypeError
        If weights are no numbers, tokens no strings, or tokens are given with an image.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.plot import attention_map
    >>> weights = np.array([[0.9, 0.1], [0.5, 0.5]])
    >>> figure = attention_map(weights, ["to", "be"], title="head 1")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['to', 'be']
    >>> over = attention_map(weights, image=np.eye(8), query=(0, 0))
    >>> len(over.axes)  # the image, the colour bar
    2
    """
    maps = _checked(weights, 2, "(L, S), of one head" if image is None else "(rows, columns)")[None]
    return _draw(maps, _subject(maps, tokens, keys, image, query), [title], size)


def head_grid(
    weights: Any,
    tokens: Sequence[str] | None = None,
    *,
    keys: Sequence[str] | None = None,
    image: Any = None,
    query: tuple[int, int] | None = None,
    title: str | None = None,
    size: float | None = None,
) -> Figure:
    """Draw the attention of every head side by side, on one scale of colours.

    Parameters
    ----------
    weights : ndarray, (H, L, S) or (H, rows, columns)
        As for `attention_map`, for each head.
    tokens, keys, image, query
        As for `attention_map`.
    title : str, optional
        Over all of them; each has its head's number.
    size : float, optional
        Width of each map in inches; by default a map with labels is 0.17 wide for each key, from
        1.5 to 6.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError, ImportError
        As `attention_map` does.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.plot import head_grid
    >>> figure = head_grid(np.full((4, 2, 2), 0.5), ["to", "be"])
    >>> [axes.get_title() for axes in figure.axes[:4]]
    ['head 1', 'head 2', 'head 3', 'head 4']
    """
    maps = _checked(weights, 3, "(H, L, S)" if image is None else "(H, rows, columns)")
    subject = _subject(maps, tokens, keys, image, query)
    titles = [f"head {h}" for h in range(1, len(maps) + 1)]
    figure = _draw(maps, subject, titles, size)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure


class _Image:
    """An image that maps lie over, and the patch that looks."""

    def __init__(self, image: NDArray[Any], query: tuple[int, int] | None) -> None:
        self.image, self.query = image, query


def _checked(weights: Any, axes: int, expected: str) -> NDArray[Any]:
    found = np.asarray(weights)
    if found.dtype.kind not in "fiu":
        raise wrong_type("weights", "numbers", found.dtype)
    if found.ndim != axes or found.size == 0:
        raise wrong("weights", expected, found.shape)
    if not (np.isfinite(found).all() and found.min() >= 0):
        raise wrong("weights", "finite weights from 0", f"{found.min()} to {found.max()}")
    return found.astype(np.float64)


def _subject(
    maps: NDArray[Any],
    tokens: Sequence[str] | None,
    keys: Sequence[str] | None,
    image: Any,
    query: tuple[int, int] | None,
) -> Words | _Image:
    rows, columns = maps.shape[1:]
    if image is None:
        if query is not None:
            raise wrong_type("query", "None without an image", query)
        return words(tokens, keys, rows, columns)
    if tokens is not None or keys is not None:
        raise wrong_type("tokens", "None beside an image", "tokens or keys")
    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0:
        raise wrong("image", "(height, width)", image.shape)
    if query is not None and not (0 <= query[0] < rows and 0 <= query[1] < columns):
        raise wrong("query", f"a row below {rows} and a column below {columns}", query)
    return _Image(image, query)


def _draw(
    maps: NDArray[Any], subject: Words | _Image, titles: Sequence[str | None], size: float | None
) -> Figure:
    count, rows, columns = maps.shape
    across = _across(count)
    down = math.ceil(count / across)
    image = subject.image if isinstance(subject, _Image) else None
    if size is None:
        cell, least, most = (0.26, 3.0, 12.0) if count == 1 else (0.17, 1.5, 6.0)
        size = min(most, max(least, cell * columns)) if image is None else 2.0
    high, wide = (rows, columns) if image is None else image.shape
    height = size * high / wide
    labels = 0.8 if image is None else 0.0  # inches beside each map
    figure = new_figure(across * (size + labels) + 1.0, down * (height + labels + 0.3))
    patches = columns if image is None else rows * columns
    scale = Scale(maps, patches, over_image=image is not None)
    grid = figure.subplots(down, across, squeeze=False)
    drawn = None
    for n, axes in enumerate(grid.flat):
        if n >= count:
            axes.set_axis_off()
            continue
        if isinstance(subject, _Image):
            drawn = outline(bare(axes), subject.image, maps[n], scale)
            _frame(axes, subject, (rows, columns))
        else:
            drawn = scale.draw(axes, maps[n], aspect="equal")
            label_axes(axes, subject, left=n % across == 0, top=n < across)
        if titles[n] is not None:
            axes.set_title(titles[n], fontsize=9)
    scale.bar(figure, drawn, grid)
    return figure


def _across(count: int) -> int:
    """Return how many maps stand side by side: a divisor if there is one that suits a page."""
    low = math.ceil(math.sqrt(count))
    suits = [n for n in range(low, 2 * low) if count % n == 0]
    return suits[0] if suits else math.ceil(math.sqrt(1.4 * count))


def _frame(axes: Any, subject: _Image, grid: tuple[int, int]) -> None:
    """Frame the patch that looks."""
    from matplotlib.patches import Rectangle

    if subject.query is None:
        return
    height, width = (size / n for size, n in zip(subject.image.shape, grid, strict=True))
    row, column = subject.query
    corner = column * width - 0.5, row * height - 0.5
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#b3410e", linewidth=1.5))
