"""Pictures of attention. Needs matplotlib: `pip install "multihead[plot]"`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["attention_maps"]


def attention_maps(
    images: NDArray[Any],
    weights: NDArray[Any],
    *,
    titles: Sequence[str] | None = None,
    size: float = 1.0,
) -> Figure:
    """Draw where each head looks in each image.

    Every image is a column: the image itself, one map for each head, and their mean. The maps share
    one colour scale that starts at 0; the outline of the image is drawn over them.

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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = 'multihead.plot needs matplotlib: pip install "multihead[plot]"'
        raise ImportError(message) from error

    maps, labels = _rows(weights)
    count, rows = len(images), 1 + len(labels)
    figure = Figure(figsize=(size * (count + 1.6), size * (rows + 0.4)), layout="compressed")
    axes = figure.subplots(rows, count, squeeze=False)
    highest = float(maps.max()) or 1.0
    for n in range(count):
        _bare(axes[0, n]).imshow(images[n], cmap="gray_r")
        if titles is not None:
            axes[0, n].set_title(titles[n], fontsize=9)
        for row, label in enumerate(labels, start=1):
            heat = _overlay(_bare(axes[row, n]), images[n], maps[n, row - 1], highest)
            if n == 0:
                axes[row, 0].set_ylabel(label, fontsize=9)
    axes[0, 0].set_ylabel("image", fontsize=9)
    bar = figure.colorbar(heat, ax=axes[1:, :], fraction=0.03, pad=0.02)
    bar.set_label("attention weight", fontsize=9)
    bar.ax.tick_params(labelsize=8)
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


def _bare(axes: Axes) -> Axes:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("0.85")
    return axes


def _overlay(axes: Axes, image: NDArray[Any], heat: NDArray[Any], highest: float) -> Any:
    """Draw the heat over a pale image, and return what the colour bar needs."""
    from matplotlib.colors import LinearSegmentedColormap

    height, width = image.shape
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(image, cmap="gray_r", alpha=0.35)
    stops = [(1.0, 0.65, 0.0, 0.0), (0.95, 0.35, 0.0, 0.6), (0.65, 0.0, 0.15, 0.9)]
    clear_to_red = LinearSegmentedColormap.from_list("clear_to_red", stops)
    return axes.imshow(heat, cmap=clear_to_red, vmin=0, vmax=highest, extent=frame)
