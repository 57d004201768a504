"""The error of a tensor, over all draws of a case, and how far two of them are to be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# of all draws together, by which chance is estimated
PARTS = 16


@dataclass
class Error:
    """What the draws add up to.

    Attributes
    ----------
    parts : int
        Parts of each draw that count as independent.
    squares : list of float
        Sums of the squares of the differences, one for each part of each draw.
    of_exact : float
        The sum of the squares of the exact entries.
    largest, largest_exact : float
        The largest difference, and the largest exact entry.
    entries : int
        How many there were.

    Examples
    --------
    >>> error = Error(parts=2)
    >>> error.add(np.array([3.0, 4.5]), np.array([3.0, 4.0]))
    >>> error.relative, error.maximum, error.entries
    (0.1, 0.125, 2)
    """

    parts: int
    squares: list[float] = field(default_factory=list)
    of_exact: float = 0.0
    largest: float = 0.0
    largest_exact: float = 0.0
    entries: int = 0

    def add(self, found: Any, exact: Any) -> None:
        """Add a draw's tensors, of float64; an entry that is not finite is infinitely wrong."""
        exact = np.asarray(exact)
        difference = np.abs(np.asarray(found) - exact)
        difference[~np.isfinite(difference)] = np.inf
        parts = np.array_split((difference**2).ravel(), self.parts)
        self.squares += [float(part.sum()) for part in parts]
        self.of_exact += float((exact**2).sum())
        self.largest = max(self.largest, float(difference.max()))
        self.largest_exact = max(self.largest_exact, float(np.abs(exact).max()))
        self.entries += exact.size

    @property
    def relative(self) -> float:
        """The norm of the differences over that of the exact entries."""
        return math.sqrt(sum(self.squares) / self.of_exact)

    @property
    def maximum(self) -> float:
        """The largest difference over the largest exact entry."""
        return self.largest / self.largest_exact

    def document(self) -> dict[str, float]:
        """Return both figures, ready for ``json.dump``."""
        return {"relative": self.relative, "maximum": self.maximum}


def parts(draws: int) -> int:
    """Return into how many parts to divide each of so many draws.

    Draws are independent; the parts of one are not quite, so they serve where draws are few.

    Examples
    --------
    >>> parts(64), parts(4), parts(1)
    (1, 4, 16)
    """
    return max(1, PARTS // draws)


def deviation(ours: Error, theirs: Error) -> float:
    """Estimate the standard error of the ratio of two norms, as the parts of the draws scatter.

    Returns
    -------
    float
        0 where an error is zero or not finite: there is nothing to estimate it from.

    Examples
    --------
    >>> ours, theirs = Error(4, [4.0, 4.0, 4.0, 4.0]), Error(4, [1.0, 1.0, 1.0, 1.0])
    >>> deviation(ours, theirs), round(deviation(Error(4, [3.0, 5.0, 4.0, 4.0]), theirs), 2)
    (0.0, 0.1)
    """
    a, b = np.array(ours.squares), np.array(theirs.squares)
    above, below = float(a.sum()), float(b.sum())
    if not (0 < above < math.inf and 0 < below < math.inf):
        return 0.0
    # of the ratio of the sums of squares, and so of its root
    ratio = above / below
    scatter = float(((a - ratio * b) ** 2).sum()) * len(a) / (len(a) - 1)
    return math.sqrt(scatter) / below / (2 * math.sqrt(ratio))
