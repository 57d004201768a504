"""The colour scale of all pictures: from an even share of attention to all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_TOP = 4.0  # times the even share at the dark end: small differences stay pale
_STOPS = ("#c6dbee", "#5e9ac8", "#1a5c9a", "#082652")
_HIDDEN = "#ececec"


class Scale:
    """Colours for weights among S keys: from 1/S, pale, to the largest of the picture, dark blue.

    It is logarithmic, and lightness falls all the way: it reads in grey, and for any eyes.
    """

    def __init__(self, weights: NDArray[Any], keys: int, over_image: bool = False) -> None:
        from matplotlib.colors import LinearSegmentedColormap, LogNorm

        self.keys = keys
        self.top = max(_LEAST_TOP, float(weights.max(initial=0)) * keys)
        self._norm = LogNorm(1 / keys, self.top / keys)
        first = (1.0, 1.0, 1.0, 0.0) if over_image else "#fcfcfb"
        colours = [first, *((stop, 0.9) if over_image else stop for stop in _STOPS)]
        # a logarithm leaves weights of 0 out: what a mask hides, or dropout dropped
        hidden = (0.0, 0.0, 0.0, 0.0) if over_image else _HIDDEN
        ramp = LinearSegmentedColormap.from_list("share", colours)
        self._colours = ramp.with_extremes(bad=hidden)

    def draw(self, axes: Axes, weights: NDArray[Any], **how: Any) -> Any:
        """Draw weights, and return what `bar` needs."""
        return axes.imshow(weights, cmap=self._colours, norm=self._norm, **how)

    def bar(self, figure: Figure, drawn: Any, axes: Any) -> None:
        """Draw the colour bar beside axes, with its even share in words."""
        from matplotlib.ticker import FixedLocator, NullLocator

        bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, aspect=25)
        times = 2.0 ** np.arange(0, np.floor(np.log2(self.top)) + 1)
        step = max(1, -(-len(times) // 6))  # at most six
        times = times[::step]
        bar.ax.yaxis.set_major_locator(FixedLocator(list(times / self.keys)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.set_ticklabels([f"{x:.0f}×" for x in times], fontsize=8)
        bar.set_label(f"weight, in even shares of 1/{self.keys}", fontsize=9)
