"""Figures: made without a window, and written so that the same picture is the same file."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SCREEN = 100  # points an inch


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of a size in inches, tied to no window."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = 'multihead.plot needs matplotlib: pip install "multihead[plot]"'
        raise ImportError(message) from error

    class Shown(Figure):  # type: ignore[misc,unused-ignore]
        """A figure that a notebook shows without being told to."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=_SCREEN)
            return file.getvalue()

    return Shown(figsize=(width, height), layout="compressed")


def bare(axes: Axes) -> Axes:
    """Take ticks away and make the frame pale."""
    axes.set_xticks([])
    axes.set_yticks([])
    return pale(axes)


def pale(axes: Axes) -> Axes:
    """Make the frame pale."""
    for spine in axes.spines.values():
        spine.set_color("0.85")
    return axes


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 160) -> None:
    """Write a figure; the same figure makes the same bytes, whenever it is written.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : path-like
        With an ending that matplotlib knows, such as ``.svg``, ``.png`` or ``.pdf``.
    dpi : int, default 160
        Points an inch, of formats that have them.

    Raises
    ------
    ValueError
        If matplotlib does not know the ending.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from multihead.plot import attention_map, save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "map.svg")
    ...     save(attention_map(np.eye(2), ["to", "be"]), path)
    ...     os.path.getsize(path) > 0
    True
    """
    import matplotlib

    undated: dict[str, dict[str, Any]] = {
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    ending = os.path.splitext(os.fspath(path))[1].lower()
    with matplotlib.rc_context({"svg.hashsalt": "multihead"}):
        figure.savefig(path, dpi=dpi, metadata=undated.get(ending))
