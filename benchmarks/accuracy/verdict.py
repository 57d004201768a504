"""When an error of ours counts as larger than PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any, NamedTuple

from benchmarks.contenders import OURS, TORCH

RELATIVE, MAXIMUM = "relative", "maximum"
METRICS = (RELATIVE, MAXIMUM)

NOISE, DEVIATIONS = 0.05, 3.0
LUCK = 2.0
# what no relative error of ours may be of PyTorch's, whatever explains it
MOST = 1.5

Document = Mapping[str, Any]


class Pair(NamedTuple):
    """One figure of the page: an error of ours beside PyTorch's.

    Attributes
    ----------
    function, dtype, length, logits
        Of its case.
    tensor, metric : str
    deviation : float
        The standard error of the ratio of the relative errors.
    ours, theirs : float
    """

    function: str
    dtype: str
    length: int
    logits: int
    tensor: str
    metric: str
    deviation: float
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """Ours over PyTorch's; 1 where both are zero or not finite."""
        if self.ours == self.theirs:
            return 1.0
        return self.ours / self.theirs if self.theirs else math.inf

    @property
    def larger(self) -> bool:
        """Whether ours is larger by more than chance explains."""
        return not self.ratio <= allowed(self.metric, self.deviation)

    @property
    def too_large(self) -> bool:
        """Whether it is a relative error of more than `MOST` times PyTorch's."""
        return self.metric == RELATIVE and not self.ratio <= MOST

    def __str__(self) -> str:
        return (
            f"{self.function} {self.dtype} L = {self.length} logits {self.logits}, {self.tensor}: "
            f"{self.metric} error {self.ours:.1e}, PyTorch's {self.theirs:.1e}, "
            f"{self.ratio:.2f} times"
        )


def allowed(metric: str, deviation: float) -> float:
    """Return the ratio up to which two errors count as equal.

    Of relative errors three standard errors, and 5 % at least. A maximum is one entry's luck:
    drawn anew, the same case has given ratios from 0.5 to 1.6.

    Examples
    --------
    >>> allowed("relative", 0.001), allowed("relative", 0.1), allowed("maximum", 0.1)
    (1.05, 1.3, 2.0)
    """
    return LUCK if metric == MAXIMUM else 1 + max(NOISE, DEVIATIONS * deviation)


def means(told: Sequence[Pair]) -> dict[tuple[str, str], float]:
    """Return the geometric mean of the ratios of relative errors, by dtype and function."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for pair in told:
        if pair.metric == RELATIVE and 0 < pair.ratio < math.inf:
            ratios.setdefault((pair.dtype, pair.function), []).append(pair.ratio)
    return {of: geometric_mean(found) for of, found in ratios.items()}


def pairs(found: Document) -> list[Pair]:
    """Return all figures of a document, in its order."""
    return [
        Pair(
            function=case["function"],
            dtype=case["dtype"],
            length=case["length"],
            logits=case["logits"],
            tensor=tensor,
            metric=metric,
            deviation=told["deviation"],
            ours=told[OURS][metric],
            theirs=told[TORCH][metric],
        )
        for case in found["cases"]
        for tensor, told in case["tensors"].items()
        for metric in METRICS
    ]
