"""Maps of one query over images, a column for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multihead.plot.figures import bare, new_figure
from multihead.plot.scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def attention_maps(
    images: NDArray[Any],
    weights: NDArray[Any],
    *,
    titles: Sequence[str] | None = None,
    size: float = 1.0,
) -> Figure:
    """Draw where each head looks in each image.

    Every image is a column: the image itself, one map for each head, and their mean, drawn over a
    pale image. The maps share one scale: colour says how many times its even share, 1 over the
    number of patches, a weight is, from 1, which has no colour, to the largest, at least 4.

    Parameters
    ----------
    images : ndarray, (N, height, width)
        Grey images; larger is darker.
    weights : ndarray, (N, H, rows, columns) or (N, rows, columns)
        Attention weights of one query over a grid of patches that covers the image, for each head
        or already averaged.
    titles : sequence of N str, optional
        A title for each column.
    size : float, default 1.0
        Width and height of a picture, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, tied to no window; ``figure.savefig(path)`` writes it.

    Raises
    ------
    ValueError
        If `images`, `weights` and `titles` disagree in rank or in N, or are empty.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from multihead.plot import attention_maps
    >>> images = np.eye(8)[None]
    >>> weights = np.full((1, 2, 4, 4), 1 / 16)
    >>> figure = attention_maps(images, weights, titles=["slash"])
    >>> len(figure.axes)  # the image, two heads, their mean and the colour bar
    5
    """
    images, weights = np.asarray(images), np.asarray(weights)
    _check(images, weights, titles)
    maps, labels = _rows(weights)
    count, rows = len(images), 1 + len(labels)
    figure = new_figure(size * (count + 1.6), size * (rows + 0.4))
    axes = figure.subplots(rows, count, squeeze=False)
    scale = Scale(maps, maps.shape[2] * maps.shape[3], over_image=True)
    for n in range(count):
        bare(axes[0, n]).imshow(images[n], cmap="gray_r")
        if titles is not None:
            axes[0, n].set_title(titles[n], fontsize=9)
        for row, label in enumerate(labels, start=1):
            heat = outline(bare(axes[row, n]), images[n], maps[n, row - 1], scale)
            if n == 0:
                axes[row, 0].set_ylabel(label, fontsize=9)
    axes[0, 0].set_ylabel("image", fontsize=9)
    scale.bar(figure, heat, axes[1:, :])
    return figure


def _check(images: NDArray[Any], weights: NDArray[Any], titles: Sequence[str] | None) -> None:
    if images.ndim != 3 or images.size == 0:
        raise ValueError(f"images: expected (N, height, width), got {images.shape}")
    if weights.ndim not in (3, 4) or len(weights) != len(images) or weights.size == 0:
        expected = f"({len(images)}, H, rows, columns) or ({len(images)}, rows, columns)"
        raise ValueError(f"weights: expected {expected}, got {weights.shape}")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles: expected {len(images)} of them, got {len(titles)}")


def _rows(weights: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    """Return the maps (N, rows of the picture, gh, gw) and the rows' labels."""
    if weights.ndim == 3:
        return weights[:, None], ["mean"]
    if weights.shape[1] == 1:
        return weights, ["head 1"]
    labels = [f"head {h}" for h in range(1, weights.shape[1] + 1)]
    return np.concatenate([weights, weights.mean(axis=1, keepdims=True)], axis=1), [*labels, "mean"]


def outline(axes: Axes, image: NDArray[Any], weights: NDArray[Any], scale: Scale) -> Any:
    """Draw weights over a pale image, and return what the colour bar needs."""
    height, width = image.shape
    axes.imshow(image, cmap="gray_r", alpha=0.35)
    return scale.draw(axes, weights, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
